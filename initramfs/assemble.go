package initramfs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Names of the files that BuildBase and Assemble make in their output directories.
const (
	KernelFile    = "vmlinuz"
	BaseFile      = "base.cpio.zst"
	ManifestFile  = "manifest.json"
	StubFile      = "stub.efi"
	UKIFile       = "bloomery-agent.efi"
	InitramfsFile = "initramfs.cpio.zst"
)

// ConfigPath is where the agent finds the rack's configuration in the image.
const ConfigPath = "/etc/bloomery/agent.json"

// DefaultCommandLine is the kernel's command line unless AssembleOptions says otherwise: both consoles, little noise, a
// reboot 30 s after a panic, and no wait for entropy on machines whose CPU has a generator.
const DefaultCommandLine = "console=tty0 console=ttyS0,115200 quiet loglevel=4 panic=30 random.trust_cpu=on"

// maxConfig bounds agent.json; it holds a few URLs, one CA certificate and one public key.
const maxConfig = 256 << 10

// AssembleOptions say what makes one rack's image of a base.
type AssembleOptions struct {
	Base        string // directory that BuildBase wrote
	Config      []byte // content of ConfigPath, a JSON object
	CommandLine string // kernel command line; empty means DefaultCommandLine
	Out         string // directory for the results, made if missing; may not be Base
}

// Result are the files that netboot serves, as absolute paths with their sizes in bytes.
type Result struct {
	UKI, Kernel, Initramfs, Manifest      string
	UKIBytes, KernelBytes, InitramfsBytes int64
	CommandLine                           string
}

// Assemble makes the image of one rack: UKIFile, KernelFile, InitramfsFile and ManifestFile in o.Out. The configuration
// is an uncompressed archive in front of the base, so that even an image that was cut short on its way can tell its
// coordinator so. Same inputs give the same bytes.
func Assemble(ctx context.Context, o AssembleOptions) (*Result, error) {
	if err := validateAssemble(o); err != nil {
		return nil, err
	}
	base := func(name string) string { return filepath.Join(o.Base, name) }
	manifest, err := readManifest(base(ManifestFile))
	if err != nil {
		return nil, err
	}
	config, err := configSegment(o.Config, manifest.BuildDate)
	if err != nil {
		return nil, err
	}
	kernel, err := os.ReadFile(base(KernelFile))
	if err != nil {
		return nil, fmt.Errorf("read kernel of agent image: %w", err)
	}
	archive, err := os.ReadFile(base(BaseFile))
	if err != nil {
		return nil, fmt.Errorf("read base of agent image: %w", err)
	}
	if err := checkBase(manifest, kernel, archive); err != nil {
		return nil, fmt.Errorf("agent image in %s: %w", o.Base, err)
	}
	stub, err := os.ReadFile(base(StubFile))
	if err != nil {
		return nil, fmt.Errorf("read UKI stub: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("assemble agent image: %w", err)
	}
	commandLine := o.CommandLine
	if commandLine == "" {
		commandLine = DefaultCommandLine
	}
	initramfs := append(config, archive...)
	uki, err := buildUKI(stub, []section{
		{".osrel", osRelease(manifest)},
		{".cmdline", []byte(commandLine)},
		{".linux", kernel},
		{".initrd", initramfs},
	})
	if err != nil {
		return nil, fmt.Errorf("assemble %s: %w", UKIFile, err)
	}
	manifestJSON, err := os.ReadFile(base(ManifestFile))
	if err != nil {
		return nil, fmt.Errorf("read manifest of agent image: %w", err)
	}
	out, err := filepath.Abs(o.Out)
	if err != nil {
		return nil, fmt.Errorf("find output directory: %w", err)
	}
	for name, data := range map[string][]byte{UKIFile: uki, KernelFile: kernel, InitramfsFile: initramfs, ManifestFile: manifestJSON} {
		if err := writeAtomic(filepath.Join(out, name), func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
			return nil, err
		}
	}
	return &Result{
		UKI: filepath.Join(out, UKIFile), Kernel: filepath.Join(out, KernelFile),
		Initramfs: filepath.Join(out, InitramfsFile), Manifest: filepath.Join(out, ManifestFile),
		UKIBytes: int64(len(uki)), KernelBytes: int64(len(kernel)), InitramfsBytes: int64(len(initramfs)),
		CommandLine: commandLine,
	}, nil
}

func validateAssemble(o AssembleOptions) error {
	if o.Base == "" || o.Out == "" {
		return fmt.Errorf("assemble agent image: Base and Out must name directories")
	}
	if filepath.Clean(o.Base) == filepath.Clean(o.Out) {
		return fmt.Errorf("assemble agent image: Out must be another directory than Base (%s)", o.Base)
	}
	if len(o.Config) > maxConfig {
		return fmt.Errorf("assemble agent image: Config has %d bytes, at most %d are allowed", len(o.Config), maxConfig)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(o.Config, &object); err != nil {
		return fmt.Errorf("assemble agent image: Config must be a JSON object: %w", err)
	}
	if strings.ContainsAny(o.CommandLine, "\x00\n") || len(o.CommandLine) > 2047 {
		return fmt.Errorf("assemble agent image: CommandLine must be one line of at most 2047 bytes")
	}
	return nil
}

func configSegment(config []byte, epoch time.Time) ([]byte, error) {
	t := newTree()
	if err := t.file(strings.TrimPrefix(ConfigPath, "/"), 0o600, config); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	if err := writeCPIO(&buf, t, epoch); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// writeAtomic puts a complete file at path or leaves what was there.
func writeAtomic(path string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make %s: %w", filepath.Dir(path), err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		_ = f.Close()
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Chmod(0o644); err != nil {
		_ = f.Close()
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
