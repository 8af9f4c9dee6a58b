package cloudinit

import (
	"crypto/ed25519"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
)

func testKey(t *testing.T) string {
	t.Helper()
	public, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " me: \"quoted\"\n"
}

func TestRender(t *testing.T) {
	mac, _ := net.ParseMAC("52:54:00:00:00:01")
	meta, err := MetaData("job-1", "web1", []string{testKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	network, err := NetworkV2(mac, netip.MustParsePrefix("10.77.0.100/24"), netip.MustParseAddr("10.77.0.1"), []netip.Addr{netip.MustParseAddr("10.77.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	vendor, err := VendorData(nil, VendorOptions{RootGrown: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"instance-id: job-1\nlocal-hostname: web1\npublic-keys:\n    - 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me: \"quoted\"'\n",
		"version: 2\nethernets:\n    primary:\n        match:\n            macaddress: \"52:54:00:00:00:01\"\n        set-name: eth0\n        dhcp4: false\n        dhcp6: false\n        accept-ra: false\n        addresses:\n            - 10.77.0.100/24\n        routes:\n            - to: 0.0.0.0/0\n              via: 10.77.0.1\n        nameservers:\n            addresses:\n                - 10.77.0.1\n",
		"#cloud-config\ngrowpart:\n    mode: \"off\"\nresize_rootfs: false\n",
	}
	if diff := cmp.Diff(want, []string{string(meta), string(network), string(vendor)}); diff != "" {
		t.Error(diff)
	}
	if err := ValidateUserData(vendor); err != nil {
		t.Errorf("own vendor-data is refused: %v", err)
	}
}

func TestRenderRefuses(t *testing.T) {
	mac, _ := net.ParseMAC("52:54:00:00:00:01")
	address := netip.MustParsePrefix("10.77.0.100/24")
	for name, f := range map[string]func() ([]byte, error){
		"no instance": func() ([]byte, error) { return MetaData("", "a", nil) },
		"bad host":    func() ([]byte, error) { return MetaData("i", "a_b", nil) },
		"bad key":     func() ([]byte, error) { return MetaData("i", "a", []string{"ssh-rsa x"}) },
		"multicast MAC": func() ([]byte, error) {
			return NetworkV2(net.HardwareAddr{1, 0, 0, 0, 0, 1}, address, netip.Addr{}, nil)
		},
		"no address":      func() ([]byte, error) { return NetworkV2(mac, netip.Prefix{}, netip.Addr{}, nil) },
		"gateway outside": func() ([]byte, error) { return NetworkV2(mac, address, netip.MustParseAddr("10.78.0.1"), nil) },
		"empty DNS":       func() ([]byte, error) { return NetworkV2(mac, address, netip.Addr{}, []netip.Addr{{}}) },
		"bad URL": func() ([]byte, error) {
			return VendorData([]string{"http://10.77.0.1/", "file:///etc/passwd"}, VendorOptions{})
		},
	} {
		if out, err := f(); err == nil {
			t.Errorf("%s: accepted: %s", name, out)
		}
	}
}

func TestValidateHostname(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "web-1.example.org": true, "1a": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "a..b": false, "a.": false, "ü": false, "a b": false, strings.Repeat("a", 64): false, strings.Repeat("a.", 127) + "a": false} {
		if err := ValidateHostname(name); (err == nil) != ok {
			t.Errorf("ValidateHostname(%q) = %v, want ok %v", name, err, ok)
		}
	}
}

func TestValidateSSHKey(t *testing.T) {
	good := testKey(t)
	for key, ok := range map[string]bool{good: true, `from="10.0.0.0/8" ` + good: true,
		"": false, "hello": false, good + good: false, "ssh-ed25519 AAAA": false,
		"-----BEGIN OPENSSH PRIVATE KEY-----\nabc": false, "# comment": false} {
		if err := ValidateSSHKey(key); (err == nil) != ok {
			t.Errorf("ValidateSSHKey(%q) = %v, want ok %v", key, err, ok)
		}
	}
}

func TestWriteSeed(t *testing.T) {
	root := t.TempDir()
	old := filepath.Join(root, SeedDir)
	if err := os.MkdirAll(old, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "vendor-data"), []byte("of the image"), 0o644); err != nil {
		t.Fatal(err)
	}
	seed := NoCloud{MetaData: []byte("instance-id: a\n"), NetworkConfig: []byte("version: 2\n")}
	for range 2 {
		if err := WriteSeed(root, seed); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]string{}
	entries, err := os.ReadDir(old)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(old, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = info.Mode().String() + " " + string(content)
	}
	want := map[string]string{"meta-data": "-rw------- instance-id: a\n", "user-data": "-rw------- ", "network-config": "-rw------- version: 2\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(old)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("seed directory has mode %v, want 0700", info.Mode())
	}
}

func TestWriteSeedStaysInRoot(t *testing.T) {
	outside := t.TempDir()
	for name, link := range map[string]string{"var": outside, "var/lib": "../../../../../../" + outside, "var/lib/cloud/seed": outside} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(link, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
			if err := WriteSeed(root, NoCloud{MetaData: []byte("a: b\n")}); err == nil {
				t.Error("followed a link out of the root")
			}
			left, err := os.ReadDir(outside)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) > 0 {
				t.Errorf("wrote %v outside of the root", left)
			}
		})
	}
}

func TestWriteSeedFollowsInnerLinks(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("data", filepath.Join(root, "var")); err != nil {
		t.Fatal(err)
	}
	if err := WriteSeed(root, NoCloud{MetaData: []byte("a: b\n")}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "data/lib/cloud/seed/nocloud/meta-data")); err != nil {
		t.Error(err)
	}
}
