package initramfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Paths within the image that the agent reads.
const (
	ReleasePath   = "/etc/bloomery/release.json" // a Release
	ChecksumsPath = "/etc/bloomery/files.sha256" // "HEX  /path" for every regular file of the base but itself, as sha256sum -c reads
)

// Release is the content of ReleasePath.
type Release struct {
	Version   string    `json:"version"`
	BuildDate time.Time `json:"build_date"` // no clock that is right shows an earlier time
	Kernel    string    `json:"kernel"`     // uname -r that the modules are for
	Debug     bool      `json:"debug"`
}

// Options say what BuildBase makes an image of.
type Options struct {
	Sysroot     string // tree that Sysroot made
	AgentBinary string // bloomery-agent for linux/amd64, built with CGO_ENABLED=0 -trimpath -buildvcs=false
	Out         string // directory for the results; also keeps the compressed system segment for the next build

	// SourceDateEpoch is the time stamp of all that is in the image. Zero means the date of the kernel's package file.
	SourceDateEpoch time.Time
	Version         string // of the image; empty means the version in the agent's build information
	Debug           bool   // leave a root shell on the console when the agent ends

	// ModuleDir is a directory of the Go module that names u-root's version; empty means the working directory. It is
	// not used when Programs is set.
	ModuleDir string
	// Programs replaces the Go programs that BuildBase compiles.
	Programs *Programs

	Log *slog.Logger // nil means silence
}

// BuildBase makes KernelFile, BaseFile, StubFile and ManifestFile in o.Out: all of the image that does not differ from
// rack to rack. Same inputs give the same bytes. It takes about a minute; when only the agent has changed, seconds.
func BuildBase(ctx context.Context, o Options) (*Manifest, error) {
	if o.Sysroot == "" || o.AgentBinary == "" || o.Out == "" {
		return nil, errors.New("build agent image: Sysroot, AgentBinary and Out must be given")
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", o.Out, err)
	}
	unlock, err := lockFile(ctx, filepath.Join(o.Out, ".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	release, err := kernelRelease(o.Sysroot)
	if err != nil {
		return nil, err
	}
	kernel := filepath.Join(o.Sysroot, "boot", "vmlinuz-"+release)
	if o.SourceDateEpoch.IsZero() {
		info, err := os.Stat(kernel)
		if err != nil {
			return nil, fmt.Errorf("date agent image by its kernel: %w", err)
		}
		o.SourceDateEpoch = info.ModTime()
	}
	o.SourceDateEpoch = o.SourceDateEpoch.UTC().Truncate(time.Second)
	packages, origins, err := readPackages(o.Sysroot)
	if err != nil {
		return nil, err
	}
	programs, err := o.programs(ctx)
	if err != nil {
		return nil, err
	}
	system, modules, err := systemTree(o, release, origins)
	if err != nil {
		return nil, err
	}
	goModules, agentVersion, err := goModules(ctx, o.ModuleDir, o.AgentBinary, programs.Init, programs.LastResort)
	if err != nil {
		return nil, err
	}
	if o.Version == "" {
		o.Version = agentVersion
	}
	agent, files, err := agentTree(o, *programs, release, system)
	if err != nil {
		return nil, err
	}
	manifest := &Manifest{
		Version: o.Version, BuildDate: o.SourceDateEpoch, Architecture: "amd64", Debug: o.Debug,
		Modules: modules, GoModules: goModules, Files: files,
	}
	stub := "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	used := []string{origins["boot/vmlinuz-"+release], origins[stub]}
	for _, f := range append(system.sorted(), agent.sorted()...) {
		used = append(used, f.origin)
	}
	if manifest.Packages, err = usedPackages(o.Sysroot, packages, used); err != nil {
		return nil, err
	}
	if manifest.Segments, err = writeBase(ctx, o, log, agent, system); err != nil {
		return nil, err
	}
	manifest.Kernel = Kernel{Release: release, Package: origins["boot/vmlinuz-"+release]}
	if manifest.Kernel.Bytes, manifest.Kernel.SHA256, err = copyFile(filepath.Join(o.Out, KernelFile), kernel); err != nil {
		return nil, err
	}
	if _, _, err := copyFile(filepath.Join(o.Out, StubFile), filepath.Join(o.Sysroot, stub)); err != nil {
		return nil, err
	}
	err = writeAtomic(filepath.Join(o.Out, ManifestFile), func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(manifest)
	})
	return manifest, err
}

// systemTree holds what changes only with the sysroot: modules, tools and the empty directories.
func systemTree(o Options, release string, origins map[string]string) (*tree, []string, error) {
	s := &sysrootFiles{root: o.Sysroot, tree: newTree(), origins: origins}
	for _, dir := range []string{"dev", "etc", "mnt", "proc", "root", "run", "sys", "var/log"} {
		if err := s.tree.dir(dir, 0o755); err != nil {
			return nil, nil, err
		}
	}
	if err := s.tree.dir("tmp", 0o1777); err != nil {
		return nil, nil, err
	}
	modules, err := addModules(s, release)
	if err != nil {
		return nil, nil, err
	}
	if err := addTools(s); err != nil {
		return nil, nil, err
	}
	return s.tree, modules, nil
}

// agentTree holds what changes with the agent, and the checksums of everything.
func agentTree(o Options, p Programs, release string, system *tree) (*tree, []File, error) {
	t := newTree()
	for _, f := range []struct{ path, source, origin string }{
		{"init", p.Init, uRootModule},
		{"bin/bloomery-agent", o.AgentBinary, ""},
		{"bin/lastresort", p.LastResort, ""},
	} {
		if err := t.copy(f.path, 0o755, f.source, f.origin); err != nil {
			return nil, nil, err
		}
	}
	// init runs /bin/defaultsh before /bin/sh. Sorting puts it in front of both /bin/sh and /bin/uinit, so that an archive
	// that was cut short has no way around it either.
	if o.Debug {
		if err := t.file("bin/defaultsh", 0o755, []byte("#!/bin/sh\nexec /bin/sh -l\n")); err != nil {
			return nil, nil, err
		}
	} else if err := t.link("bin/defaultsh", "lastresort", ""); err != nil {
		return nil, nil, err
	}
	if err := t.link("bin/uinit", "bloomery-agent", ""); err != nil {
		return nil, nil, err
	}
	releaseJSON, err := json.MarshalIndent(Release{Version: o.Version, BuildDate: o.SourceDateEpoch, Kernel: release, Debug: o.Debug}, "", "  ")
	if err != nil {
		return nil, nil, fmt.Errorf("describe agent image: %w", err)
	}
	if err := t.file(strings.TrimPrefix(ReleasePath, "/"), 0o644, append(releaseJSON, '\n')); err != nil {
		return nil, nil, err
	}
	files, err := allFiles(t, system)
	if err != nil {
		return nil, nil, err
	}
	var sums strings.Builder
	for _, f := range files {
		fmt.Fprintf(&sums, "%s  %s\n", f.SHA256, f.Path)
	}
	if err := t.file(strings.TrimPrefix(ChecksumsPath, "/"), 0o644, []byte(sums.String())); err != nil {
		return nil, nil, err
	}
	files, err = allFiles(t, system)
	return t, files, err
}

func copyFile(to, from string) (int64, string, error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, "", fmt.Errorf("copy %s: %w", path.Base(to), err)
	}
	defer src.Close()
	h := sha256.New()
	var n int64
	err = writeAtomic(to, func(w io.Writer) error {
		buffered := bufio.NewWriter(io.MultiWriter(w, h))
		var err error
		if n, err = io.Copy(buffered, src); err != nil {
			return err
		}
		return buffered.Flush()
	})
	return n, hex.EncodeToString(h.Sum(nil)), err
}
