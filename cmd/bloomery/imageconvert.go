package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"bloomery/images"
	"bloomery/images/oci"
	"bloomery/lab"
)

// metaSuffix names the file beside a disk image or archive that says what it is, as the recipes write it.
const metaSuffix = ".meta.json"

func newImageConvert(set *settings) *cobra.Command {
	var from conversion
	var out, name string
	cmd := &cobra.Command{
		Use:   "convert FILE --out DIR",
		Short: "Convert a disk image or a root file system to Bloomery's format without storing it",
		Long: `FILE is one of these, found out by its first bytes, plain or compressed as .zst, .gz, .xz or .bz2:
  a raw disk, or a qcow2 disk without a backing file
  a tar archive of a root file system for custom layouts (--kind rootfs, or "kind" in its meta file)
  an OCI layout, a folder or a tar archive that is not compressed, whose layers are flattened into a root file system (--platform says of which image)
VMDK, VHD, VHDX and VDI are refused: make a qcow2 of them with "qemu-img convert -O qcow2".
What FILE holds (system, root partition, loader) is read from FILE.meta.json or --meta. Without either the partition table of a disk is
looked at: the root is the partition of that type, or the largest one with ext4 or xfs, and where none is found the system gets its
cloud-init data in a partition of its own.

A conversion that was interrupted goes on where it stopped when the same command is given again.`,
		Example: `  bloomery image convert out/images/debian-12.raw --out out/images/debian-12
  bloomery image convert noble-server-cloudimg-amd64.img --meta noble.meta.json --out ubuntu-24.04
  bloomery image convert out/images/debian-12-rootfs.tar.zst --out out/images/debian-12-rootfs`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "out"); err != nil {
				return err
			}
			if name == "" {
				name = filepath.Base(out)
			}
			if err := images.ValidateName(name); err != nil {
				return usagef("--name %q: %w", name, err)
			}
			if err := from.convert(cmd.Context(), name, args[0], out, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return set.printFiles(cmd.OutOrStdout(), filepath.Join(out, images.ManifestFile), filepath.Join(out, images.DataFile))
		},
	}
	from.flags(cmd)
	cmd.Flags().StringVar(&out, "out", "", "folder to make; replaced when FILE is newer")
	cmd.Flags().StringVar(&name, "name", "", "image's name; the folder's when not given")
	return cmd
}

// conversion is what the commands are told of a file to convert.
type conversion struct{ meta, kind, maxSize, platform string }

func (c *conversion) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.meta, "meta", "", "JSON file with os and boot of the image; FILE.meta.json when not given")
	cmd.Flags().StringVar(&c.kind, "kind", "", "disk or rootfs; the meta file's, or disk, when not given")
	cmd.Flags().StringVar(&c.maxSize, "max-size", lab.Size(images.DefaultMaxImportSize).String(), "the largest disk or unpacked archive to read")
	cmd.Flags().StringVar(&c.platform, "platform", images.DefaultPlatform, "which image of an OCI layout to take")
}

// folder converts a file into a folder beside it, where an interrupted command finds it again, and names the folder to remove in the end. A
// folder that is converted already is taken as it is.
func (c conversion) folder(ctx context.Context, name, source string, progress io.Writer) (folder, work string, err error) {
	if info, err := os.Stat(source); err != nil {
		return "", "", err
	} else if info.IsDir() && !oci.IsLayout(source) {
		return source, "", nil
	}
	source = filepath.Clean(source)
	work = filepath.Join(filepath.Dir(source), ".bloomery-image-"+name)
	return work, work, c.convert(ctx, name, source, work, progress)
}

// convert makes the image of a file in the folder out, unless it is there.
func (c conversion) convert(ctx context.Context, name, source, out string, progress io.Writer) error {
	limit, err := lab.ParseSize(c.maxSize)
	if err != nil {
		return usagef("--max-size: %w", err)
	}
	metaPath, about, err := readImageMeta(source, c.meta)
	unknown := errors.Is(err, errNoMeta) && c.kind != images.KindRootfs
	if errors.Is(err, errNoMeta) && !unknown {
		return noMeta(source, metaPath, err)
	}
	if err != nil && !unknown {
		return err
	}
	isLayout := oci.IsLayout(source)
	switch c.kind {
	case "":
		about.Kind = cmp.Or(about.Kind, images.KindDisk)
		if isLayout {
			about.Kind = images.KindRootfs
		}
	case images.KindDisk, images.KindRootfs:
		about.Kind = c.kind
	default:
		return usagef("--kind %q: want %s or %s", c.kind, images.KindDisk, images.KindRootfs)
	}
	if isLayout && about.Kind != images.KindRootfs {
		return usagef("--kind %s: %s is an OCI layout, which makes a %s", about.Kind, source, images.KindRootfs)
	}
	if unknown && isLayout {
		return noMeta(source, metaPath, errNoMeta)
	}
	if unknown && described(out, name, source) || !unknown && current(out, name, about, source, metaPath) {
		return nil
	}
	if err := removeConverted(out); err != nil {
		return err
	}
	lines := throttled{w: progress, every: 2 * time.Second}
	options := images.ImportOptions{Name: name, Out: out, OS: about.OS, Boot: about.Boot, Workers: 2, MaxSize: int64(limit),
		Progress: func(in, disk int64) {
			lines.printf("converting %s: %s of %s, from %s of %s\n", name, bytesText(disk), about.Kind, bytesText(in), filepath.Base(source))
		}}
	if isLayout {
		_, err = images.ImportOCI(ctx, source, c.platform, options)
	} else {
		err = convertFile(ctx, source, about.Kind, options)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w; the same command goes on from there", err)
	}
	if err != nil || !unknown {
		return err
	}
	if err := describe(out); err != nil {
		return errors.Join(noMeta(source, metaPath, err), removeConverted(out))
	}
	return nil
}

// noMeta says what to do about a file that nothing is said of and on which nothing was found.
func noMeta(source, metaPath string, err error) error {
	return fmt.Errorf("what is on %s is not known: %w; write %s or name another with --meta", source, err, metaPath)
}

// current tells whether a folder holds the image of that name and description, converted after its sources were written.
func current(folder, name string, about images.Meta, sources ...string) bool {
	m := converted(folder, sources...)
	return m != nil && m.Name == name && reflect.DeepEqual(images.Meta{Kind: m.Kind, OS: m.OS, Boot: m.Boot}, about)
}

// converted is the manifest of a folder that was made after its sources were written, or nil.
func converted(folder string, sources ...string) *images.Manifest {
	path := filepath.Join(folder, images.ManifestFile)
	made, err := os.Stat(path)
	if err != nil {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	m, err := images.DecodeManifest(text)
	if err != nil || slices.ContainsFunc(sources, func(source string) bool {
		info, err := os.Stat(source)
		return err != nil || !made.ModTime().After(info.ModTime())
	}) {
		return nil
	}
	return m
}

// removeConverted removes what an earlier conversion left, and refuses a folder that holds anything else.
func removeConverted(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch entry.Name() {
		case images.ManifestFile, images.SignatureFile, images.DataFile:
		default:
			return fmt.Errorf("--out %s: holds %s, which is no part of an image: name a folder that is to be made", folder, entry.Name())
		}
	}
	return os.RemoveAll(folder)
}

func convertFile(ctx context.Context, source, kind string, options images.ImportOptions) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close() // read only
	if kind == images.KindRootfs {
		_, err = images.ImportRootfs(ctx, file, options)
	} else {
		_, err = images.Import(ctx, file, options)
	}
	return err
}

// errNoMeta says that nothing is said of a disk image.
var errNoMeta = errors.New("there is no meta file")

// readImageMeta finds and reads what is said of a disk image.
func readImageMeta(source, given string) (path string, meta images.Meta, err error) {
	path = given
	if path == "" {
		path = source + metaSuffix
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && given == "" {
		return path, meta, errNoMeta
	}
	if err != nil {
		return path, meta, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, images.MaxMetaSize+1))
	if err != nil {
		return path, meta, err
	}
	if meta, err = images.DecodeMeta(text); err != nil {
		return path, meta, fmt.Errorf("%s: %w", path, err)
	}
	return path, meta, nil
}

// throttled prints at most one line in a while.
type throttled struct {
	w     io.Writer
	every time.Duration
	last  time.Time
}

func (t *throttled) printf(format string, args ...any) {
	now := time.Now()
	if t.last.IsZero() {
		t.last = now
	}
	if now.Sub(t.last) < t.every {
		return
	}
	t.last = now
	fmt.Fprintf(t.w, format, args...)
}
