package kmod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// machine is a fake kernel: inserting a module may make devices appear.
type machine struct {
	root   Root
	mu     sync.Mutex
	order  []string
	appear map[string]map[string]string // module -> files below sys
	fail   map[string]error
}

func (k *machine) Insert(path string) error {
	name := nameOf(path)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fail[name]; err != nil {
		return err
	}
	k.order = append(k.order, name)
	for file, content := range k.appear[name] {
		if err := writeFile(filepath.Join(k.root.Sys, file), content); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

const (
	depFile = `kernel/virtio/virtio_ring.ko:
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/virtio/virtio_pci.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/net/virtio_net.ko.xz: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/nvme/nvme-core.ko:
kernel/nvme/nvme.ko: kernel/nvme/nvme-core.ko
kernel/fs/xfs/xfs.ko:
kernel/crypto/crc32c_generic.ko:
kernel/ata/ahci.ko:
kernel/scsi/sd_mod.ko:
kernel/a.ko:
kernel/b.ko:
../escape.ko:
`
	softdepFile = "# comment\nsoftdep xfs pre: crc32c-generic\nsoftdep a pre: b\nsoftdep b pre: a post: no_such\n"
	aliasFile   = `# Aliases extracted from modules themselves.
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias virtio:d00000001v* virtio_net
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias pci:v00008086d000010D3sv*sd*bc*sc*i* absent
alias fs-xfs xfs
`
)

func fixture(t *testing.T) (*Modules, *machine) {
	t.Helper()
	dir := t.TempDir()
	root := Root{Sys: filepath.Join(dir, "sys"), Modules: filepath.Join(dir, "modules")}
	for path, content := range map[string]string{
		"modules/modules.dep":                           depFile,
		"modules/modules.softdep":                       softdepFile,
		"modules/modules.alias":                         aliasFile,
		"modules/modules.builtin":                       "kernel/fs/ext4/ext4.ko\n",
		"sys/devices/pci0000:00/0000:00:01.0/modalias":  "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\n",
		"sys/devices/pci0000:00/0000:00:02.0/modalias":  "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n",
		"sys/devices/pci0000:00/0000:00:03.0/modalias":  "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00\n",
		"sys/devices/pci0000:00/0000:00:1f.2/modalias":  "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01\n",
		"sys/devices/pci0000:00/0000:00:03.0/power/foo": "x",
	} {
		if err := writeFile(filepath.Join(dir, path), content); err != nil {
			t.Fatal(err)
		}
	}
	k := &machine{root: root, appear: map[string]map[string]string{
		"virtio_pci": {"devices/pci0000:00/0000:00:01.0/virtio0/modalias": "virtio:d00000001v00001AF4\n"},
		"ahci":       {"class/scsi_host/host0": ""},
	}}
	m, err := Open(root, k, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return m, k
}

func TestLoadDrivers(t *testing.T) {
	m, k := fixture(t)
	report, err := m.LoadDrivers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ahci", "nvme", "nvme_core", "sd_mod", "virtio", "virtio_net", "virtio_pci", "virtio_ring"}
	if diff := cmp.Diff(want, report.Loaded); diff != "" {
		t.Error(diff)
	}
	if len(report.Failed) != 0 {
		t.Errorf("failed: %v", report.Failed)
	}
	at := map[string]int{}
	for i, name := range k.order {
		at[name] = i
	}
	for _, pair := range [][2]string{{"virtio_ring", "virtio"}, {"virtio", "virtio_pci"}, {"virtio_pci", "virtio_net"}, {"nvme_core", "nvme"}, {"ahci", "sd_mod"}} {
		if at[pair[0]] >= at[pair[1]] {
			t.Errorf("%s was not before %s: %v", pair[0], pair[1], k.order)
		}
	}
	before := len(k.order)
	again, err := m.LoadDrivers(context.Background())
	if err != nil || len(again.Loaded) != 0 || len(k.order) != before {
		t.Errorf("the second call did something: %+v, %v", again, err)
	}
}

func TestLoadDriversGoesOnPastAFailure(t *testing.T) {
	m, k := fixture(t)
	broken := errors.New("no such device")
	k.fail = map[string]error{"nvme_core": broken, "virtio": fs.ErrExist}
	report, err := m.LoadDrivers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(report.Failed["nvme"], broken) || len(report.Failed) != 1 {
		t.Errorf("failed: %v", report.Failed)
	}
	if got := strings.Join(report.Loaded, " "); got != "ahci sd_mod virtio_net virtio_pci virtio_ring" {
		t.Errorf("loaded: %s", got)
	}
}

func TestLoad(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct{ name, want, errHas string }{
		{"xfs", "crc32c_generic xfs", ""},
		{"fs-xfs", "crc32c_generic xfs", ""},
		{"nvme-core", "nvme_core", ""},
		{"ext4", "", ""},
		{"a", "b a", ""},
		{"nosuch", "", "no such kernel module"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, k := fixture(t)
			err := m.Load(ctx, tt.name)
			if (err == nil) != (tt.errHas == "") || err != nil && !strings.Contains(err.Error(), tt.errHas) {
				t.Fatalf("error %v", err)
			}
			if got := strings.Join(k.order, " "); got != tt.want {
				t.Errorf("inserted %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("in the kernel already", func(t *testing.T) {
		m, k := fixture(t)
		if err := writeFile(filepath.Join(k.root.Sys, "module/crc32c_generic/initstate"), "live\n"); err != nil {
			t.Fatal(err)
		}
		if err := m.Load(ctx, "xfs"); err != nil || strings.Join(k.order, " ") != "xfs" {
			t.Errorf("inserted %v, %v", k.order, err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		m, _ := fixture(t)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := m.Load(ctx, "xfs"); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOpenWithoutIndex(t *testing.T) {
	if _, err := Open(Root{Modules: t.TempDir()}, Kernel{}, slog.New(slog.DiscardHandler)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"*", "", true}, {"a", "", false}, {"*b*c", "abxc", true}, {"*b*c", "abxcd", false},
		{"a?c", "abc", true}, {"a?c", "ac", false}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[]]", "]", true},
		{"[a", "[a", true}, {`\*`, "*", true}, {`\*`, "x", false}, {"a**", "a", true},
		{"cpu:type:x86,ven*fam*mod*:feature:*0081*", "cpu:type:x86,ven0002fam0019mod0001:feature:,0080,0081,0082", true},
	} {
		if got := glob(tt.pattern, tt.s); got != tt.want {
			t.Errorf("glob(%q, %q) = %v", tt.pattern, tt.s, got)
		}
	}
	long := strings.Repeat("a", 4000)
	if glob(strings.Repeat("*a", 50)+"b", long) {
		t.Error("matched")
	}
}

func FuzzAlias(f *testing.F) {
	f.Add(aliasFile, "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00")
	f.Add("alias * x\nalias [ y\nalias a\\ z", "a")
	f.Fuzz(func(t *testing.T, file, modalias string) {
		var ix index
		if err := ix.readAlias(strings.NewReader(file)); err != nil {
			return
		}
		for _, name := range ix.match(modalias) {
			if strings.Contains(name, "-") || strings.ContainsAny(name, " \n") {
				t.Errorf("%q is no module name", name)
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	var file strings.Builder
	for i := range 15000 {
		fmt.Fprintf(&file, "alias pci:v%08Xd%08Xsv*sd*bc*sc*i* mod%d\n", 0x8086+i%7, i, i%100)
	}
	var ix index
	if err := ix.readAlias(strings.NewReader(file.String())); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		ix.match("pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00")
	}
}

// A driver that finds none of its hardware is udev's everyday: neither loaded nor failed, and so is what needs it.
func TestLoadDriversForgivesAbsentHardware(t *testing.T) {
	m, k := fixture(t)
	k.fail = map[string]error{"nvme_core": unix.ENODEV}
	report, err := m.LoadDrivers(context.Background())
	if err != nil || len(report.Failed) != 0 {
		t.Errorf("failed: %v, %v", report.Failed, err)
	}
	if got := strings.Join(report.Loaded, " "); strings.Contains(got, "nvme") || !strings.Contains(got, "ahci") {
		t.Errorf("loaded: %s", got)
	}
	if err := m.Load(context.Background(), "nvme"); err != nil {
		t.Errorf("loading by name: %v", err)
	}
}
