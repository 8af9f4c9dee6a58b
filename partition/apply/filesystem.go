package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition/layout"
)

// ensureFilesystem makes a filesystem that is not there as planned, or that is not sound because its making was interrupted.
func (m *Machine) ensureFilesystem(ctx context.Context, p *layout.Plan, f layout.FilesystemPlan) error {
	dev, err := m.Device(ctx, p, f.Device)
	if err != nil {
		return err
	}
	if err := m.release(ctx, dev); err != nil {
		return err
	}
	seen, err := m.probe(ctx, dev)
	if err != nil {
		return err
	}
	sound := false
	if len(seen.against(f)) == 0 {
		if sound, err = m.soundFilesystem(ctx, dev, f.Format); err != nil {
			return err
		}
	}
	if !sound {
		return m.makeFilesystem(ctx, p, f)
	}
	return m.makeSubvolumes(ctx, dev, f)
}

func (m *Machine) makeFilesystem(ctx context.Context, p *layout.Plan, f layout.FilesystemPlan) error {
	// Anew, since this destroys what is on it.
	dev, err := m.Device(ctx, p, f.Device)
	if err != nil {
		return err
	}
	if err := m.release(ctx, dev); err != nil {
		return err
	}
	if err := m.blank(ctx, dev); err != nil {
		return err
	}
	argv, err := makeArgv(f, dev)
	if err != nil {
		return err
	}
	if _, err := m.tool(ctx, argv); err != nil {
		return err
	}
	if err := m.Disks.Flush(dev); err != nil {
		return err
	}
	return m.makeSubvolumes(ctx, dev, f)
}

// makeArgv is the command line of a filesystem's own tool. The disk was discarded before where it can be: none does it again. vfat is FAT32
// without the sham partition table that mkfs.vfat writes onto what it takes for a whole disk.
func makeArgv(f layout.FilesystemPlan, dev string) ([]string, error) {
	var argv []string
	labelled := func(option string) {
		if f.Label != "" {
			argv = append(argv, option, f.Label)
		}
	}
	switch f.Format {
	case layout.FormatExt4:
		argv = []string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-U", f.UUID}
		labelled("-L")
	case layout.FormatXFS:
		argv = []string{"mkfs.xfs", "-q", "-f", "-K", "-m", "uuid=" + f.UUID}
		labelled("-L")
	case layout.FormatBtrfs:
		argv = []string{"mkfs.btrfs", "-q", "-f", "-K", "-U", f.UUID}
		labelled("-L")
	case layout.FormatVFAT:
		argv = []string{"mkfs.vfat", "-I", "-F", "32", "--mbr=no", "-i", plainUUID(f.UUID)}
		labelled("-n")
	case layout.FormatSwap:
		argv = []string{"mkswap", "--force", "--uuid", f.UUID}
		labelled("--label")
	default:
		return nil, fmt.Errorf("there is no way to make a filesystem %q", f.Format)
	}
	return append(append(argv, f.MakeOptions...), dev), nil
}

// soundFilesystem has a filesystem's own checker read it. A fresh one takes a moment.
func (m *Machine) soundFilesystem(ctx context.Context, dev, format string) (bool, error) {
	argv := map[string][]string{
		layout.FormatExt4:  {"e2fsck", "-f", "-n", dev},
		layout.FormatXFS:   {"xfs_repair", "-n", dev},
		layout.FormatBtrfs: {"btrfs", "check", "--readonly", dev},
		layout.FormatVFAT:  {"fsck.vfat", "-n", dev},
	}[format]
	if argv == nil {
		return true, nil // swap space has nothing but its header, which is written last
	}
	result, err := m.answer(ctx, argv)
	if err != nil {
		return false, fmt.Errorf("check the %s filesystem on %s: %w", format, dev, err)
	}
	return result.ExitCode == 0, nil
}

// makeSubvolumes makes those that are not there.
func (m *Machine) makeSubvolumes(ctx context.Context, dev string, f layout.FilesystemPlan) error {
	if len(f.Subvolumes) == 0 {
		return nil
	}
	names := make([]string, len(f.Subvolumes))
	for i, s := range f.Subvolumes {
		names[i] = s.Name
	}
	slices.Sort(names) // a parent before what is in it
	return m.withTop(ctx, dev, func(top string) error {
		for _, name := range names {
			if !filepath.IsLocal(name) {
				return fmt.Errorf("subvolume %q does not lie in the filesystem", name)
			}
			path := filepath.Join(top, name)
			if _, err := os.Lstat(path); err == nil {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("make room for subvolume %s: %w", name, err)
			}
			if _, err := m.tool(ctx, []string{"btrfs", "subvolume", "create", path}); err != nil {
				return fmt.Errorf("make subvolume %s: %w", name, err)
			}
		}
		return nil
	})
}

// withTop mounts the top of a btrfs for a moment.
func (m *Machine) withTop(ctx context.Context, dev string, use func(top string) error) (err error) {
	dir, err := os.MkdirTemp("", "bloomery-btrfs-")
	if err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount(dev, dir, "btrfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "subvolid=5"); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	defer func() {
		if unmountErr := m.unmount(context.WithoutCancel(ctx), dir); unmountErr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", dev, unmountErr))
		}
	}()
	return use(dir)
}

// signature is what blkid finds on a device by reading it, past any cache.
type signature struct{ kind, uuid, label string }

func (m *Machine) probe(ctx context.Context, dev string) (signature, error) {
	result, err := m.answer(ctx, []string{"blkid", "--probe", "--output", "export", dev})
	if err != nil {
		return signature{}, fmt.Errorf("read what is on %s: %w", dev, err)
	}
	switch result.ExitCode {
	case 0:
		values := pairs(result.Stdout)
		return signature{kind: values["TYPE"], uuid: values["UUID"], label: blkidText(values["LABEL"])}, nil
	case 2: // nothing
		return signature{}, nil
	case 8: // several kinds at once
		return signature{kind: "ambivalent"}, nil
	}
	return signature{}, fmt.Errorf("read what is on %s: %w", dev, &run.ExitError{Program: "blkid", ExitCode: result.ExitCode, Stderr: string(result.Stderr)})
}

// blkidText undoes the backslashes that blkid's export format has for a shell's sake.
func blkidText(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

func (s signature) against(f layout.FilesystemPlan) []Difference {
	var d differences
	d.compare("format", f.Format, s.kind)
	d.compare("uuid", strings.ToLower(f.UUID), strings.ToLower(s.uuid))
	d.compare("label", f.Label, s.label)
	return d.sorted()
}
