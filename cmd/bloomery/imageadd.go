package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

// metaSuffix names the file beside a disk image that says what it is, as the recipes write it.
const metaSuffix = ".meta.json"

func newImageAdd(set *settings) *cobra.Command {
	var meta string
	cmd := &cobra.Command{
		Use:   "add NAME FILE",
		Short: "Convert a disk image, sign it with the rack's key and store it at the coordinator",
		Long: `FILE is a disk, raw or qcow2, or a tar archive of a root file system for custom layouts ("kind": "rootfs" in its meta file), each
plain or compressed as .zst, .gz, .xz or .bz2, or a folder that "bloomery image convert" made.
What it holds (system, root partition, loader) is read from FILE.meta.json or --meta.

Conversion and signing happen here: the coordinator never has the signing key.`,
		Example: `  bloomery image add debian-12 out/images/debian-12.raw
  bloomery image add ubuntu-24.04 noble.qcow2 --meta noble.meta.json`,
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, source := args[0], args[1]
			if err := images.ValidateName(name); err != nil {
				return usagef("%q: %w", name, err)
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			if c.config.ImageKey == "" {
				return errors.New("image_key: the client configuration names no signing key; add the path of image.key that \"bloomery rack init\" made")
			}
			key, err := images.LoadPrivateKey(c.config.ImageKey, "")
			if err != nil {
				return err
			}
			folder := source
			if info, err := os.Stat(source); err != nil {
				return err
			} else if !info.IsDir() {
				_, about, err := readImageMeta(source, meta)
				if err != nil {
					return err
				}
				work, err := os.MkdirTemp(filepath.Dir(source), ".bloomery-image-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(work)
				folder = filepath.Join(work, name)
				if err := convertImage(cmd.Context(), name, source, about, folder, cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			manifest, err := renamedManifest(folder, name)
			if err != nil {
				return err
			}
			signature, err := images.Sign(manifest, key)
			if err != nil {
				return err
			}
			header := &bloomeryv1.AddImageHeader{Name: name, Manifest: manifest, Signature: signature}
			image, err := uploadImage(cmd.Context(), c, header, filepath.Join(folder, images.DataFile), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return set.printImage(cmd.OutOrStdout(), image)
		},
	}
	cmd.Flags().StringVar(&meta, "meta", "", "JSON file with os and boot of the image; FILE.meta.json when not given")
	return cmd
}

func newImageConvert(set *settings) *cobra.Command {
	var meta, out, name string
	cmd := &cobra.Command{
		Use:   "convert FILE --out DIR",
		Short: "Convert a disk image or a root file system to Bloomery's format without storing it",
		Example: `  bloomery image convert out/images/debian-12.raw --out out/images/debian-12
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
			metaPath, about, err := readImageMeta(args[0], meta)
			if err != nil {
				return err
			}
			if !current(out, name, args[0], metaPath) {
				if err := removeConverted(out); err != nil {
					return err
				}
				if err := convertImage(cmd.Context(), name, args[0], about, out, cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			return set.printFiles(cmd.OutOrStdout(), filepath.Join(out, images.ManifestFile), filepath.Join(out, images.DataFile))
		},
	}
	cmd.Flags().StringVar(&meta, "meta", "", "JSON file with os and boot of the image; FILE.meta.json when not given")
	cmd.Flags().StringVar(&out, "out", "", "folder to make; replaced when FILE is newer")
	cmd.Flags().StringVar(&name, "name", "", "image's name; the folder's when not given")
	return cmd
}

// current tells whether a folder holds the image of that name, converted after its sources were written.
func current(folder, name string, sources ...string) bool {
	path := filepath.Join(folder, images.ManifestFile)
	made, err := os.Stat(path)
	if err != nil {
		return false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	if manifest, err := images.DecodeManifest(text); err != nil || manifest.Name != name {
		return false
	}
	return !slices.ContainsFunc(sources, func(source string) bool {
		info, err := os.Stat(source)
		return err != nil || !made.ModTime().After(info.ModTime())
	})
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

func convertImage(ctx context.Context, name, source string, about images.Meta, out string, progress io.Writer) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := throttled{w: progress, every: 2 * time.Second}
	options := images.ImportOptions{Name: name, Out: out, OS: about.OS, Boot: about.Boot, Workers: 2,
		Progress: func(in, disk int64) {
			lines.printf("converting %s: %s of %s\n", name, bytesText(disk), cmp.Or(about.Kind, images.KindDisk))
		}}
	if about.Kind == images.KindRootfs {
		_, err = images.ImportRootfs(ctx, file, options)
	} else {
		_, err = images.Import(ctx, file, options)
	}
	return err
}

// readImageMeta finds and reads what is said of a disk image.
func readImageMeta(source, given string) (path string, meta images.Meta, err error) {
	path = given
	if path == "" {
		path = source + metaSuffix
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && given == "" {
		return path, meta, fmt.Errorf("what is on %s is not known: %s is missing; write it or name another with --meta", source, path)
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

// renamedManifest reads a converted folder's manifest under the name that the store shall know it by.
func renamedManifest(folder, name string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(folder, images.ManifestFile))
	if err != nil {
		return nil, err
	}
	manifest, err := images.DecodeManifest(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", folder, err)
	}
	manifest.Name = name
	return manifest.Encode()
}

// uploadChunk is how much data one message carries.
const uploadChunk = 1 << 20

func uploadImage(ctx context.Context, c *client, header *bloomeryv1.AddImageHeader, dataPath string, progress io.Writer) (*bloomeryv1.Image, error) {
	data, err := os.Open(dataPath)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	info, err := data.Stat()
	if err != nil {
		return nil, err
	}
	stream := c.images.AddImage(ctx)
	lines := throttled{w: progress, every: 2 * time.Second}
	sent := int64(0)
	message := &bloomeryv1.AddImageRequest{Part: &bloomeryv1.AddImageRequest_Header{Header: header}}
	for message != nil {
		// A refusal ends the stream early: its reason comes with CloseAndReceive.
		if err := stream.Send(message); err != nil {
			break
		}
		chunk := make([]byte, uploadChunk)
		n, err := io.ReadFull(data, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("read %s: %w", dataPath, err)
		}
		message = nil
		if n > 0 {
			message = &bloomeryv1.AddImageRequest{Part: &bloomeryv1.AddImageRequest_Data{Data: chunk[:n]}}
			sent += int64(n)
			lines.printf("sending %s: %s of %s\n", header.GetName(), bytesText(sent), bytesText(info.Size()))
		}
	}
	answer, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return answer.Msg.GetImage(), nil
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

func newImageSign(set *settings) *cobra.Command {
	var keyPath string
	cmd := &cobra.Command{
		Use:     "sign DIR --key FILE",
		Short:   "Sign a converted image's manifest",
		Example: `  bloomery image sign out/images/debian-12 --key /var/lib/bloomery/pki/image.key`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "key"); err != nil {
				return err
			}
			key, err := images.LoadPrivateKey(keyPath, "")
			if err != nil {
				return err
			}
			manifest, err := os.ReadFile(filepath.Join(args[0], images.ManifestFile))
			if err != nil {
				return err
			}
			signature, err := images.Sign(manifest, key)
			if err != nil {
				return err
			}
			path := filepath.Join(args[0], images.SignatureFile)
			if err := os.WriteFile(path, signature, 0o644); err != nil {
				return err
			}
			return set.printFiles(cmd.OutOrStdout(), path)
		},
	}
	cmd.Flags().StringVar(&keyPath, "key", "", "minisign private key")
	return cmd
}
