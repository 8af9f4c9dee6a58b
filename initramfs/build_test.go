package initramfs

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"
)

// fakeSysroot has every module and tool of the tables as a small file; /bin/busybox is a real program of the build
// machine's Go tool chain's making only where a test needs one.
func fakeSysroot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"boot/vmlinuz-6.1.0-test":                    "kernel",
		"usr/lib/systemd/boot/efi/linuxx64.efi.stub": string(fakeStub(4)),
		"usr/share/doc/busybox/copyright":            "License: GPL-2\nLicense: BSD-4-clause\nLicense: GPL-2\n",
		packagesFile:                                 "package busybox 1.35 busybox\npath bin/busybox\npath usr/share/doc/busybox/copyright\n",
	}
	const dir = "lib/modules/6.1.0-test/"
	var dep strings.Builder
	for _, group := range modulesByPurpose {
		for _, name := range group.names {
			files[dir+"kernel/"+name+".ko"] = "module " + name
			dep.WriteString("kernel/" + name + ".ko:\n")
		}
	}
	files[dir+"modules.dep"] = dep.String()
	for _, name := range append([]string{"modules.builtin", "modules.builtin.modinfo"}, moduleIndexes...) {
		files[dir+name] = ""
	}
	for _, group := range toolsByPurpose {
		for _, name := range group.paths {
			files[name] = "tool " + name
		}
	}
	for _, name := range toolLibraries {
		files["lib/x86_64-linux-gnu/"+name] = "library " + name
	}
	for _, name := range toolData {
		files[name] = "data"
	}
	writeFiles(t, root, files)
	return root
}

// fakeOptions use the test binary itself for the Go programs: BuildBase reads their build information.
func fakeOptions(t *testing.T, sysroot string) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Sysroot: sysroot, AgentBinary: self, Out: t.TempDir(), SourceDateEpoch: time.Unix(1700000000, 0),
		Programs: &Programs{Init: self, LastResort: self},
	}
}

func TestBuildIsReproducible(t *testing.T) {
	sysroot := fakeSysroot(t)
	config := []byte(`{"coordinators":["https://10.0.0.1:8443"]}`)
	build := func() (Options, string, *Result) {
		o := fakeOptions(t, sysroot)
		if _, err := BuildBase(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		rack := t.TempDir()
		result, err := Assemble(t.Context(), AssembleOptions{Base: o.Out, Config: config, Out: rack})
		if err != nil {
			t.Fatal(err)
		}
		return o, rack, result
	}
	first, firstRack, result := build()
	// Other times and another order on disk must not show.
	touched := filepath.Join(sysroot, "bin/busybox")
	if err := os.Chtimes(touched, time.Now(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	second, secondRack, _ := build()
	for _, pair := range []struct{ a, b, name string }{
		{first.Out, second.Out, BaseFile}, {first.Out, second.Out, ManifestFile}, {first.Out, second.Out, KernelFile},
		{firstRack, secondRack, UKIFile}, {firstRack, secondRack, InitramfsFile}, {firstRack, secondRack, KernelFile},
	} {
		if !bytes.Equal(read(t, filepath.Join(pair.a, pair.name)), read(t, filepath.Join(pair.b, pair.name))) {
			t.Errorf("two builds of the same inputs differ in %s", pair.name)
		}
	}
	initramfs := read(t, result.Initramfs)
	checkUKI(t, read(t, result.UKI), []section{{".linux", []byte("kernel")}, {".initrd", initramfs}, {".cmdline", []byte(DefaultCommandLine)}})
	checkConfigFirst(t, initramfs, config)
}

func checkConfigFirst(t *testing.T, initramfs, config []byte) {
	t.Helper()
	reader := cpio.Newc.Reader(bytes.NewReader(initramfs))
	for {
		record, err := reader.ReadRecord()
		if err != nil {
			t.Fatalf("look for %s in front of the base: %v", ConfigPath, err)
		}
		if "/"+record.Name != ConfigPath {
			continue
		}
		got := make([]byte, record.FileSize)
		if _, err := record.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(config), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", ConfigPath, diff)
		}
		return
	}
}

func TestNoShellAfterTheAgent(t *testing.T) {
	sysroot := fakeSysroot(t)
	for _, debug := range []bool{false, true} {
		o := fakeOptions(t, sysroot)
		o.Debug = debug
		system, _, err := systemTree(o, "6.1.0-test", nil)
		if err != nil {
			t.Fatal(err)
		}
		agent, _, err := agentTree(o, *o.Programs, "6.1.0-test", system)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := agent.entries["bin/defaultsh"].target == "lastresort", !debug; got != want {
			t.Errorf("debug %v: /bin/defaultsh is lastresort: %v, want %v", debug, got, want)
		}
		// init also tries these, in front of /bin/defaultsh or instead of the agent.
		for _, name := range []string{"inito", "bbin/uinit", "buildbin/uinit"} {
			if _, ok := system.entries[name]; ok {
				t.Errorf("/%s would run in the agent's place", name)
			}
		}
	}
}

func TestMissingPartsAreErrors(t *testing.T) {
	tests := map[string]struct {
		remove string
		want   string
	}{
		"tool":    {"sbin/mdadm", "sbin/mdadm"},
		"library": {"lib/x86_64-linux-gnu/libgcc_s.so.1", "libgcc_s.so.1"},
		"module":  {"lib/modules/6.1.0-test/kernel/nvme.ko", "nvme.ko"},
		"kernel":  {"boot/vmlinuz-6.1.0-test", "exactly one"},
		"stub":    {"usr/lib/systemd/boot/efi/linuxx64.efi.stub", "stub"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sysroot := fakeSysroot(t)
			if err := os.Remove(filepath.Join(sysroot, tt.remove)); err != nil {
				t.Fatal(err)
			}
			if _, err := BuildBase(t.Context(), fakeOptions(t, sysroot)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that names %s", err, tt.want)
			}
		})
	}
}

func TestAssembleRefuses(t *testing.T) {
	o := fakeOptions(t, fakeSysroot(t))
	if _, err := BuildBase(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	good := AssembleOptions{Base: o.Out, Config: []byte(`{}`), Out: t.TempDir()}
	damaged := func(name string, change func([]byte) []byte) string {
		dir := t.TempDir()
		for _, file := range []string{KernelFile, BaseFile, ManifestFile, StubFile} {
			data := read(t, filepath.Join(o.Out, file))
			if file == name {
				data = change(data)
			}
			if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	tests := map[string]struct {
		change func(*AssembleOptions)
		want   string
	}{
		"no config":         {func(a *AssembleOptions) { a.Config = nil }, "JSON object"},
		"config no object":  {func(a *AssembleOptions) { a.Config = []byte(`[]`) }, "JSON object"},
		"config too large":  {func(a *AssembleOptions) { a.Config = make([]byte, maxConfig+1) }, "at most"},
		"two lines":         {func(a *AssembleOptions) { a.CommandLine = "a\nb" }, "one line"},
		"out is base":       {func(a *AssembleOptions) { a.Out = a.Base }, "another directory"},
		"truncated base":    {func(a *AssembleOptions) { a.Base = damaged(BaseFile, func(b []byte) []byte { return b[:len(b)/2] }) }, "cut short"},
		"flipped bit":       {func(a *AssembleOptions) { a.Base = damaged(BaseFile, func(b []byte) []byte { b[99] ^= 1; return b }) }, "does not match"},
		"other kernel":      {func(a *AssembleOptions) { a.Base = damaged(KernelFile, func(b []byte) []byte { return b[1:] }) }, "does not match"},
		"trailing bytes":    {func(a *AssembleOptions) { a.Base = damaged(BaseFile, func(b []byte) []byte { return append(b, 0) }) }, "does not know"},
		"truncated stub":    {func(a *AssembleOptions) { a.Base = damaged(StubFile, func(b []byte) []byte { return b[:len(b)-9] }) }, "stub"},
		"manifest not JSON": {func(a *AssembleOptions) { a.Base = damaged(ManifestFile, func([]byte) []byte { return []byte("x") }) }, "manifest"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := good
			tt.change(&a)
			if _, err := Assemble(t.Context(), a); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestManifestNamesPackagesAndLicences(t *testing.T) {
	m, err := BuildBase(t.Context(), fakeOptions(t, fakeSysroot(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := []Package{{Name: "busybox", Version: "1.35", Source: "busybox", Licences: []string{"BSD-4-clause", "GPL-2"}}}
	if diff := cmp.Diff(want, m.Packages); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	files := map[string]string{}
	for _, f := range m.Files {
		files[f.Path] = f.Package
	}
	for _, path := range []string{"/init", "/bin/bloomery-agent", "/bin/busybox", ReleasePath, ChecksumsPath} {
		if _, ok := files[path]; !ok {
			t.Errorf("%s is not in the manifest's files %v", path, maps.Keys(files))
		}
	}
	if files["/bin/busybox"] != "busybox" {
		t.Errorf("/bin/busybox is said to come from %q", files["/bin/busybox"])
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
