package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// m1 has a disk that the image does not fit on and one that it does; m2's record names m3's switch port.
const refusingRack = `
name: e2e-refusals
machines:
  - name: m1
    disks: [{bus: nvme, size: 1GiB, serial: E2ESMALL}, {bus: virtio, size: 4GiB, serial: E2EDATA}]
  - name: m2
  - name: m3
`

// TestRefusals asks for what cannot be: each time the error names the thing, and the disk's earlier data stand.
func TestRefusals(t *testing.T) {
	r := newRack(t, refusingRack)
	image := filepath.Join(r.out, "images", "debian-12")
	r.do("image", "add", "debian-12", image)

	earlier := []byte("the last customer's accounts")
	disk := filepath.Join(r.stateDir, "m", "m1", "disk1.raw")
	writeAt(t, disk, earlier, 3<<20)

	t.Run("strangers", func(t *testing.T) {
		r.t = t
		if err := r.inNamespace("", "strangers", r.stateDir); err != nil {
			t.Error(err)
		}
		kinds := map[string]bool{}
		for _, event := range r.events("--type", "security") {
			kinds[event.Type] = true
		}
		for _, kind := range []string{"security.enrolment_refused", "security.call_refused", "security.image_refused"} {
			if !kinds[kind] {
				t.Errorf("no event %s was recorded; there are %v", kind, kinds)
			}
		}
	})

	t.Run("wrong cable", func(t *testing.T) {
		r.t = t
		r.do("lab", "fault", "swap-ports", "--port", "Ethernet2", "--other-port", "Ethernet3", "--state-dir", r.stateDir)
		r.do("lab", "power", "m3", "on", "--state-dir", r.stateDir)
		r.eventually(time.Minute, "m3 to be heard on m2's port", func() (bool, string) {
			port := r.switchPort("Ethernet2")
			return len(port.Learned) > 0, fmt.Sprintf("%+v", port)
		})
		r.refused([]string{"PORT_GUARD", "Ethernet2", "foreign"}, "machine", "inspect", "m2", "--wait")
		r.do("lab", "power", "m3", "off", "--state-dir", r.stateDir)
		for _, port := range []string{"Ethernet2", "Ethernet3"} {
			if vlan := r.port(port); vlan != 999 {
				t.Errorf("%s is in VLAN %d, want 999: it was not to be moved", port, vlan)
			}
		}
	})

	r.t = t
	r.do("machine", "inspect", "m1", "--wait")
	userData := filepath.Join(filepath.Dir(r.stateDir), "user-data")
	if err := os.WriteFile(userData, []byte("#cloud-config\npackages: [unclosed"), 0o600); err != nil {
		t.Fatal(err)
	}
	install := func(args ...string) []string {
		return append([]string{"machine", "install", "m1", "--network", "customer-a"}, args...)
	}
	r.refused([]string{"debian-13", "IMAGE_NOT_FOUND", "debian-12"}, install("--image", "debian-13")...)
	r.refused([]string{"NOSUCH", "DISK_NOT_FOUND", "E2EDATA"}, install("--image", "debian-12", "--disk-serial", "NOSUCH")...)
	r.refused([]string{"DISK_TOO_SMALL", "E2ESMALL"}, install("--image", "debian-12", "--disk-serial", "E2ESMALL")...)
	r.refused([]string{"user_data", "USER_DATA_INVALID"}, install("--image", "debian-12", "--user-data", userData)...)
	r.refused([]string{"nowhere", "NETWORK_NOT_FOUND"}, "machine", "install", "m1", "--image", "debian-12", "--network", "nowhere")

	t.Run("bad images", func(t *testing.T) {
		r.t = t
		stored := filepath.Join(r.stateDir, "coordinator", "images", "debian-12", "data")
		flipByte(t, stored, 1<<20)
		r.refused([]string{"IMAGE_CORRUPT", "debian-12"}, install("--image", "debian-12", "--disk-serial", "E2EDATA")...)
		flipByte(t, stored, 1<<20)
		r.do("image", "verify", "debian-12")

		copied := filepath.Join(filepath.Dir(r.stateDir), "copied")
		copyImage(t, image, copied)
		if err := os.Truncate(filepath.Join(copied, "data"), 5<<20); err != nil {
			t.Fatal(err)
		}
		r.refused([]string{"truncated-12"}, "image", "add", "truncated-12", copied)
		copyImage(t, image, copied)
		flipByte(t, filepath.Join(copied, "data"), 2<<20)
		r.refused([]string{"flipped-12"}, "image", "add", "flipped-12", copied)

		// Signed by a key that is not the rack's.
		signature := filepath.Join(r.stateDir, "coordinator", "images", "debian-12", "manifest.json.minisig")
		flipByte(t, signature, 60)
		r.refused([]string{"SIGNATURE_WRONG"}, "image", "verify", "debian-12")
		r.refused([]string{"debian-12", "IMAGE_SIGNATURE"}, install("--image", "debian-12", "--disk-serial", "E2EDATA")...)
	})

	r.t = t
	if found := readAt(t, disk, len(earlier), 3<<20); string(found) != string(earlier) {
		t.Errorf("the disk's earlier data are %q, want %q", found, earlier)
	}
	if m := r.machine("m1"); m.Status != "MACHINE_STATUS_AVAILABLE" {
		t.Errorf("m1 is %s after refusals, want available", m.Status)
	}
}

func writeAt(t *testing.T, path string, data []byte, offset int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(data, offset); err != nil {
		t.Fatal(err)
	}
}

func readAt(t *testing.T, path string, length int, offset int64) []byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data := make([]byte, length)
	if _, err := file.ReadAt(data, offset); err != nil {
		t.Fatal(err)
	}
	return data
}

func flipByte(t *testing.T, path string, offset int64) {
	t.Helper()
	b := readAt(t, path, 1, offset)
	writeAt(t, path, []byte{b[0] ^ 1}, offset)
}

func copyImage(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
