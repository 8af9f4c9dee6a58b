package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

func newImageCommand(set *settings) *cobra.Command {
	return group("image", "Convert, sign, store and verify OS images", newImageAdd(set), newImageConvert(set), newImageSign(set),
		newImageList(set), newImageShow(set), newImageVerify(set), newImageRemove(set))
}

// metaSuffix names the file beside a disk image that says what it is, as the recipes write it.
const metaSuffix = ".meta.json"

// imageMeta is that file: the part of a manifest that the disk's bytes do not tell.
type imageMeta struct {
	OS   images.OS   `json:"os"`
	Boot images.Boot `json:"boot"`
}

func newImageAdd(set *settings) *cobra.Command {
	var meta string
	cmd := &cobra.Command{
		Use:   "add NAME FILE",
		Short: "Convert a disk image, sign it with the rack's key and store it at the coordinator",
		Long: `FILE is a raw disk, plain or compressed as .zst, .gz or .xz, or a folder that "bloomery image convert" made.
What the disk holds (system, root partition, loader) is read from FILE.meta.json or --meta.

Conversion and signing happen here: the coordinator never has the signing key.`,
		Example: `  bloomery image add debian-12 out/images/debian-12.raw
  bloomery image add ubuntu-24.04 noble.raw.xz --meta noble.meta.json`,
		Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, source := args[0], args[1]
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
				work, err := os.MkdirTemp(filepath.Dir(source), ".bloomery-image-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(work)
				folder = filepath.Join(work, name)
				if err := convertImage(cmd.Context(), name, source, meta, folder, cmd.ErrOrStderr()); err != nil {
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
		Use:     "convert FILE --out DIR",
		Short:   "Convert a disk image to Bloomery's format without storing it",
		Example: `  bloomery image convert out/images/debian-12.raw --out out/images/debian-12`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usagef("--out is needed (see %q)", cmd.CommandPath()+" --help")
			}
			if name == "" {
				name = filepath.Base(out)
			}
			if current(out, args[0]) {
				return nil
			}
			if err := os.RemoveAll(out); err != nil {
				return err
			}
			if err := convertImage(cmd.Context(), name, args[0], meta, out, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return set.printFiles(cmd.OutOrStdout(), filepath.Join(out, images.ManifestFile), filepath.Join(out, images.DataFile))
		},
	}
	cmd.Flags().StringVar(&meta, "meta", "", "JSON file with os and boot of the image; FILE.meta.json when not given")
	cmd.Flags().StringVar(&out, "out", "", "folder to make; replaced when FILE is newer")
	cmd.Flags().StringVar(&name, "name", "", "image's name; the folder's when not given")
	return cmd
}

// current tells whether a converted folder is newer than the file that it was made of.
func current(folder, file string) bool {
	made, err := os.Stat(filepath.Join(folder, images.ManifestFile))
	if err != nil {
		return false
	}
	source, err := os.Stat(file)
	return err == nil && made.ModTime().After(source.ModTime())
}

func convertImage(ctx context.Context, name, source, metaPath, out string, progress io.Writer) error {
	meta, err := readImageMeta(source, metaPath)
	if err != nil {
		return err
	}
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := throttled{w: progress, every: 2 * time.Second}
	_, err = images.Import(ctx, file, images.ImportOptions{Name: name, Out: out, OS: meta.OS, Boot: meta.Boot, Workers: 2,
		Progress: func(in, disk int64) {
			lines.printf("converting %s: %s of disk\n", name, bytesText(disk))
		}})
	return err
}

func readImageMeta(source, path string) (imageMeta, error) {
	var meta imageMeta
	given := path != ""
	if !given {
		path = source + metaSuffix
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !given {
		return meta, fmt.Errorf("what is on %s is not known: %s is missing; write it or name another with --meta", source, path)
	}
	if err != nil {
		return meta, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&meta); err != nil {
		return meta, fmt.Errorf("%s: %w", path, err)
	}
	return meta, nil
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
			if keyPath == "" {
				return usagef("--key is needed (see %q)", cmd.CommandPath()+" --help")
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

func newImageList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the images in the rack's store",
		Example: `  bloomery image list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := c.images.ListImages(cmd.Context(), connect.NewRequest(&bloomeryv1.ListImagesRequest{}))
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer.Msg, func(w io.Writer) {
				row(w, "NAME", "SYSTEM", "DISK", "DATA", "FRAMES", "MANIFEST")
				for _, image := range answer.Msg.GetImages() {
					row(w, image.GetName(), image.GetOs(), bytesText(image.GetSizeBytes()), bytesText(image.GetDataBytes()),
						fmt.Sprint(image.GetFrames()), image.GetManifestSha256()[:min(12, len(image.GetManifestSha256()))])
				}
			})
		},
	}
}

func (s *settings) printImage(w io.Writer, image *bloomeryv1.Image) error {
	return s.printMessage(w, image, func(w io.Writer) {
		row(w, "Image", image.GetName())
		row(w, "System", image.GetOs())
		row(w, "Disk", bytesText(image.GetSizeBytes()))
		row(w, "Data", fmt.Sprintf("%s in %d frames", bytesText(image.GetDataBytes()), image.GetFrames()))
		row(w, "Manifest", "sha256 "+image.GetManifestSha256())
	})
}

func newImageShow(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show an image of the store",
		Example: `  bloomery image show debian-12`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := c.images.GetImage(cmd.Context(), connect.NewRequest(&bloomeryv1.GetImageRequest{Name: args[0]}))
			if err != nil {
				return err
			}
			return set.printImage(cmd.OutOrStdout(), answer.Msg.GetImage())
		},
	}
}

func newImageVerify(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "verify NAME",
		Short:   "Read every frame of a stored image again and check its signature",
		Example: `  bloomery image verify debian-12`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := c.images.VerifyImage(cmd.Context(), connect.NewRequest(&bloomeryv1.VerifyImageRequest{Name: args[0]}))
			if err != nil {
				return err
			}
			return set.printImage(cmd.OutOrStdout(), answer.Msg.GetImage())
		},
	}
}

func newImageRemove(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME",
		Short:   "Remove an image from the store",
		Example: `  bloomery image rm debian-11`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			_, err = c.images.RemoveImage(cmd.Context(), connect.NewRequest(&bloomeryv1.RemoveImageRequest{Name: args[0]}))
			return err
		},
	}
}
