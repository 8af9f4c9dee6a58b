package apply

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition"
)

// world is a kernel with block devices in a folder that stands for sysfs. Ending something takes it away.
type world struct {
	t       *testing.T
	root    string
	numbers map[string]string // path to number
	mounted []string          // lines of mountinfo
	swapped []string          // lines of /proc/swaps
	ended   []string
	busy    int // unmounts that fail first
}

func newWorld(t *testing.T) *world {
	return &world{t: t, root: t.TempDir(), numbers: map[string]string{}}
}

// add shows a device; files are attributes below its folder, and what ends in / is a folder.
func (w *world) add(name, number string, files map[string]string) {
	w.t.Helper()
	dir := filepath.Join(w.root, "class/block", name)
	files["dev"] = number
	for file, text := range files {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(w.root, "dev/block"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Symlink("../../class/block/"+name, filepath.Join(w.root, "dev/block", number)); err != nil {
		w.t.Fatal(err)
	}
	w.numbers["/dev/"+name] = number
}

// partition shows a partition of a disk.
func (w *world) partition(disk, name, number string) {
	w.add(name, number, map[string]string{"partition": "1"})
	w.add(disk+"/"+name, number+"x", map[string]string{"partition": "1"})
}

// hold makes above stand on each of the others.
func (w *world) hold(above string, on ...string) {
	w.t.Helper()
	for _, name := range on {
		dir := filepath.Join(w.root, "class/block", name, "holders")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Symlink("../../"+above, filepath.Join(dir, above)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) remove(name string) {
	w.ended = append(w.ended, name)
	if err := os.RemoveAll(filepath.Join(w.root, "class/block", name)); err != nil {
		w.t.Fatal(err)
	}
	links, err := filepath.Glob(filepath.Join(w.root, "class/block/*/holders", name))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, link := range links {
		if err := os.Remove(link); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) mountinfo() ([]byte, error) { return []byte(strings.Join(w.mounted, "\n")), nil }
func (w *world) swaps() ([]byte, error) {
	return []byte("Filename\tType\tSize\tUsed\tPriority\n" + strings.Join(w.swapped, "\n")), nil
}

func (w *world) number(path string) (string, error) {
	if n, found := w.numbers[path]; found {
		return n, nil
	}
	return "", &os.PathError{Op: "stat", Path: path, Err: unix.ENOENT}
}

func (w *world) unmount(path string) error {
	if w.busy > 0 {
		w.busy--
		return unix.EBUSY
	}
	for i := len(w.mounted) - 1; i >= 0; i-- {
		if strings.Fields(w.mounted[i])[4] == strings.ReplaceAll(path, " ", `\040`) {
			w.mounted = slices.Delete(w.mounted, i, i+1)
			w.ended = append(w.ended, path)
			return nil
		}
	}
	return unix.EINVAL
}

func (w *world) swapoff(path string) error {
	w.swapped = slices.DeleteFunc(w.swapped, func(line string) bool { return strings.HasPrefix(line, path+" ") })
	w.ended = append(w.ended, path)
	return nil
}

func (w *world) machine() (*Machine, *run.Fake) {
	fake := &run.Fake{Answer: func(c run.Call) (run.Result, error) {
		switch c.Argv[0] {
		case "dmsetup":
			for path := range w.numbers {
				text, err := os.ReadFile(filepath.Join(w.root, "class/block", filepath.Base(path), "dm/name"))
				if err == nil && strings.TrimSpace(string(text)) == c.Argv[len(c.Argv)-1] {
					w.remove(filepath.Base(path))
				}
			}
		case "mdadm", "losetup":
			w.remove(filepath.Base(c.Argv[len(c.Argv)-1]))
		}
		return run.Result{}, nil
	}}
	return &Machine{Disks: partition.Disks{Runner: fake, Sysfs: w.root}, kernel: w}, fake
}

// deep is a disk with swap, LVM on LUKS on an array over two disks, a file on a filesystem as a loop device, and a btrfs over two disks.
func deep(t *testing.T) *world {
	w := newWorld(t)
	w.add("vda", "254:0", map[string]string{})
	w.add("vdb", "254:16", map[string]string{})
	for i, part := range []string{"vda1", "vda2", "vda3"} {
		w.partition("vda", part, "254:"+string(rune('1'+i)))
	}
	w.partition("vdb", "vdb1", "254:17")
	w.partition("vdb", "vdb2", "254:18")
	w.add("md127", "9:127", map[string]string{"md/metadata_version": "1.2", "md/sync_action": "resync"})
	w.hold("md127", "vda1", "vdb1")
	w.add("dm-0", "253:0", map[string]string{"dm/name": "crypt", "dm/uuid": "CRYPT-LUKS2-x-crypt"})
	w.hold("dm-0", "md127")
	for i, name := range []string{"vg--x-pool_tmeta", "vg--x-pool_tdata", "vg--x-pool-tpool", "vg--x-root"} {
		w.add("dm-"+string(rune('1'+i)), "253:"+string(rune('1'+i)), map[string]string{"dm/name": name, "dm/uuid": "LVM-x"})
	}
	w.hold("dm-1", "dm-0")
	w.hold("dm-2", "dm-0")
	w.hold("dm-3", "dm-1", "dm-2")
	w.hold("dm-4", "dm-3")
	w.add("loop3", "7:3", map[string]string{"loop/backing_file": "/mnt/images/a.raw"})
	w.add("loop4", "7:4", map[string]string{"loop/backing_file": "/elsewhere/a.raw"})
	w.numbers["/dev/vda3"] = "254:3"
	for _, dev := range []string{"vda3", "vdb2"} {
		dir := filepath.Join(w.root, "fs/btrfs/uuid/devices")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../../../class/block/"+dev, filepath.Join(dir, dev)); err != nil {
			t.Fatal(err)
		}
	}
	w.mounted = []string{
		"1 0 0:2 / / rw - rootfs rootfs rw",
		"2 1 253:4 / /mnt rw,relatime shared:1 - ext4 /dev/mapper/vg--x-root rw",
		"3 2 0:30 / /mnt/run rw - tmpfs tmpfs rw",
		"4 2 7:3 / /mnt/images/mounted\\040here rw - ext4 /dev/loop3 rw",
		"5 1 0:40 /@ /data rw - btrfs /dev/vdb2 rw",
		"6 1 254:99 / /mntother rw - ext4 /dev/vdz rw",
	}
	w.swapped = []string{"/dev/vda2 partition 1 0 -2", "/mnt/swapfile file 1 0 -3", "/elsewhere/swapfile file 1 0 -4"}
	w.numbers["/dev/vdb2"] = "254:18"
	return w
}

func TestStopDeepStack(t *testing.T) {
	w := deep(t)
	w.busy = 2
	m, fake := w.machine()
	if err := m.Stop(t.Context(), "/dev/vda"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/mnt/images/mounted here", "loop3", "/mnt/swapfile", "/mnt/run", "/mnt", "dm-4", "dm-3", "dm-1", "dm-2", "dm-0", "md127", "/dev/vda2", "/data",
	}
	if d := cmp.Diff(want, w.ended); d != "" {
		t.Errorf("ended (-want +got):\n%s", d)
	}
	if text, err := os.ReadFile(filepath.Join(w.root, "class/block/md127/md/sync_action")); err == nil {
		t.Errorf("the array is still there, its resync %s", text)
	}
	var lines []string
	for _, c := range fake.Calls() {
		lines = append(lines, c.String())
	}
	golden(t, "stop.golden", strings.Join(lines, "\n")+"\n")
	if len(w.mounted) != 2 || len(w.swapped) != 1 {
		t.Errorf("something of others was ended: %v %v", w.mounted, w.swapped)
	}
}

// A container of Intel's format is held by the same disks as the volume in it, which has to be stopped first.
func TestStopContainer(t *testing.T) {
	w := newWorld(t)
	w.add("sda", "8:0", map[string]string{})
	w.add("sdb", "8:16", map[string]string{})
	w.add("md0", "9:0", map[string]string{"md/metadata_version": "external:imsm"})
	w.add("md126", "9:126", map[string]string{"md/metadata_version": "external:/md0/0"})
	w.add("md126p1", "259:0", map[string]string{"partition": "1"})
	w.add("md126/md126p1", "259:0x", map[string]string{"partition": "1"})
	w.hold("md0", "sda", "sdb")
	w.hold("md126", "sda", "sdb")
	w.mounted = []string{"2 1 259:0 / /srv rw - ext4 /dev/md126p1 rw"}
	m, _ := w.machine()
	if err := m.Stop(t.Context(), "/dev/sda"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"/srv", "md126", "md0"}, w.ended); d != "" {
		t.Error(d)
	}
}

func TestStopRefuses(t *testing.T) {
	w := newWorld(t)
	w.add("sda", "8:0", map[string]string{})
	w.partition("sda", "sda1", "8:1")
	w.mounted = []string{"1 0 8:1 / / rw - ext4 /dev/sda1 rw"}
	m, fake := w.machine()
	if err := m.Stop(t.Context(), "/dev/sda"); !errors.Is(err, ErrRunningSystem) || len(w.ended)+len(fake.Calls()) != 0 {
		t.Errorf("the disk of the running system: %v, ended %v", err, w.ended)
	}
	w.mounted = nil
	w.add("bcache0", "252:0", map[string]string{})
	w.hold("bcache0", "sda1")
	if err := m.Stop(t.Context(), "/dev/sda"); err == nil || !strings.Contains(err.Error(), "bcache0") {
		t.Errorf("a holder of an unknown kind: %v", err)
	}
	if err := m.Stop(t.Context(), "/dev/sdz"); err == nil {
		t.Error("a disk that is not there was stopped")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Stop(ctx, "/dev/sda"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v after the end of its context", err)
	}
	w = newWorld(t)
	w.add("sda", "8:0", map[string]string{})
	w.mounted = []string{"2 1 8:0 / /busy rw - ext4 /dev/sda rw"}
	w.busy = 1 << 30
	m, _ = w.machine()
	if err := m.Stop(t.Context(), "/dev/sda"); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "/busy") {
		t.Errorf("a mount that stays busy: %v", err)
	}
}

func TestMapperNames(t *testing.T) {
	for _, c := range []struct{ group, volume, name string }{{"vg", "lv", "vg-lv"}, {"v-g", "l--v", "v--g-l----v"}, {"vg0", "a-b", "vg0-a--b"}} {
		if got := mapperName(c.group, c.volume); got != c.name {
			t.Errorf("%s/%s is %s, want %s", c.group, c.volume, got, c.name)
		}
		if g, v := splitMapperName(c.name); g != c.group || v != c.volume {
			t.Errorf("%s is %s/%s, want %s/%s", c.name, g, v, c.group, c.volume)
		}
	}
}
