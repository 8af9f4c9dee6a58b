package initramfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestModuleClosure(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"modules.dep": "kernel/fs/xfs.ko: kernel/lib/libcrc32c.ko\nkernel/lib/libcrc32c.ko:\nkernel/crypto/crc32c_generic.ko:\n" +
			"kernel/crypto/crc32c-intel.ko:\nkernel/fs/other.ko:\n",
		"modules.builtin": "kernel/drivers/tty/serial.ko\n",
		"modules.softdep": "# comment\nsoftdep libcrc32c pre: crc32c gone\nsoftdep other post: xfs\n",
		"modules.alias":   "alias crc32c crc32c_intel\nalias crc32c crc32c_generic\nalias pci:v*d* other\n",
		"modules.symbols": "", "modules.devname": "",
	})
	x, err := readModuleIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x.closure([]string{"xfs", "serial"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"crc32c_intel", "crc32c_generic", "xfs", "libcrc32c"}, got); diff != "" {
		t.Errorf("closure of xfs (-want +got):\n%s", diff)
	}
	wantDep := "kernel/crypto/crc32c-intel.ko:\nkernel/crypto/crc32c_generic.ko:\nkernel/fs/xfs.ko: kernel/lib/libcrc32c.ko\nkernel/lib/libcrc32c.ko:\n"
	if diff := cmp.Diff(wantDep, string(x.depFile(got))); diff != "" {
		t.Errorf("modules.dep (-want +got):\n%s", diff)
	}
	keep := map[string]bool{"crc32c_intel": true, "libcrc32c": true}
	if diff := cmp.Diff("alias crc32c crc32c_intel\n", string(filterIndex("modules.alias", x.text["modules.alias"], keep))); diff != "" {
		t.Errorf("modules.alias (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("# comment\nsoftdep libcrc32c pre: crc32c gone\n", string(filterIndex("modules.softdep", x.text["modules.softdep"], keep))); diff != "" {
		t.Errorf("modules.softdep (-want +got):\n%s", diff)
	}
	if _, err := x.closure([]string{"absent"}); err == nil {
		t.Error("a module that does not exist was resolved")
	}
}
