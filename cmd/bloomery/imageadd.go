package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

func newImageAdd(set *settings) *cobra.Command {
	var from conversion
	var maker published
	cmd := &cobra.Command{
		Use:   "add [NAME] FILE|URL",
		Short: "Convert a disk image, sign it with the rack's key and store it at the coordinator",
		Long: `FILE is what "bloomery image convert" reads, or a folder that it made. A URL is fetched first, and nothing of it is looked at before its
checksum is right. NAME is made of the file's when it is not given. Conversion and signing happen here: the coordinator never has the
signing key.

When it is interrupted what was fetched stays in the user's cache folder, the converted image in a folder beside FILE, and what the
coordinator has received stays there for a day: the same command goes on from there.`,
		Example: `  bloomery image add debian-12 out/images/debian-12.raw
  bloomery image add ubuntu-24.04 noble.qcow2 --meta noble.meta.json
  bloomery image add ubuntu-24.04 https://cloud-images.ubuntu.com/noble/current/noble-server-cloudimg-amd64.img \
    --sha256sums https://cloud-images.ubuntu.com/noble/current/SHA256SUMS`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return nil
			}
			return exactArgs(2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			source := args[len(args)-1]
			name := nameOf(source)
			if len(args) == 2 {
				name = args[0]
			}
			if err := images.ValidateName(name); err != nil {
				return usagef("%q: %w", name, err)
			}
			if err := maker.check(source); err != nil {
				return err
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
			remove := func() error { return nil }
			if isURL(source) {
				if source, remove, err = maker.fetch(cmd.Context(), source, from.maxSize, cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			folder, work, err := from.folder(cmd.Context(), name, source, cmd.ErrOrStderr())
			if err != nil {
				return err
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
			if goesOn(cmd.Context(), err) {
				return fmt.Errorf("%w; the same command goes on from there", err)
			}
			if work != "" {
				err = errors.Join(err, os.RemoveAll(work), remove())
			}
			if err != nil {
				return err
			}
			return set.printImage(cmd.OutOrStdout(), image)
		},
	}
	from.flags(cmd)
	maker.flags(cmd)
	return cmd
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
