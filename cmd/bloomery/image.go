package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newImageCommand(set *settings) *cobra.Command {
	return group("image", "Convert, sign, store and verify OS images", newImageAdd(set), newImageConvert(set), newImageSign(set),
		newImageList(set, nil), newImageShow(set), newImageVerify(set), newImageRemove(set), newImageKeyCommand(set))
}

func newImageList(set *settings, in *fleetFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images in the rack's store",
		Example: `  bloomery image list
  bloomery image list -o json`,
		Annotations: rowFormats(),
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing[*bloomeryv1.ListImagesResponse, *bloomeryv1.Image]{
				one: "image", many: "images", items: (*bloomeryv1.ListImagesResponse).GetImages, columns: imageColumns,
				fetch: func(ctx context.Context, c *client) (*bloomeryv1.ListImagesResponse, error) {
					return ask(ctx, c.images.ListImages, &bloomeryv1.ListImagesRequest{})
				},
				compare: func(a, b *bloomeryv1.Image) int { return strings.Compare(a.GetName(), b.GetName()) },
			}.run(cmd, set, in)
		},
	}
	if in != nil {
		cmd.Short, cmd.Example = "List the images in all racks' stores", `  bloomery fleet image list`
	}
	return cmd
}

func imageColumns() []column[*bloomeryv1.Image] {
	return []column[*bloomeryv1.Image]{
		{"name", "NAME", (*bloomeryv1.Image).GetName},
		{"system", "SYSTEM", (*bloomeryv1.Image).GetOs},
		{"disk", "DISK", func(i *bloomeryv1.Image) string { return bytesText(i.GetSizeBytes()) }},
		{"data", "DATA", func(i *bloomeryv1.Image) string { return bytesText(i.GetDataBytes()) }},
		{"frames", "FRAMES", func(i *bloomeryv1.Image) string { return fmt.Sprint(i.GetFrames()) }},
		{"copies", "COPIES", copiesText},
		{"manifest", "MANIFEST", func(i *bloomeryv1.Image) string { return i.GetManifestSha256()[:min(12, len(i.GetManifestSha256()))] }},
	}
}

// copiesText says on how many of the rack's coordinators an image is.
func copiesText(image *bloomeryv1.Image) string {
	if image.GetKeyRevoked() {
		return "key revoked"
	}
	return fmt.Sprintf("%d/%d", len(image.GetCopies()), len(image.GetCopies())+len(image.GetMissing()))
}

func (s *settings) printImage(w io.Writer, image *bloomeryv1.Image) error {
	return s.printMessage(w, image, func(w io.Writer) {
		row(w, "Image", image.GetName())
		row(w, "System", image.GetOs())
		row(w, "Disk", bytesText(image.GetSizeBytes()))
		row(w, "Data", fmt.Sprintf("%s in %d frames", bytesText(image.GetDataBytes()), image.GetFrames()))
		row(w, "Manifest", "sha256 "+image.GetManifestSha256())
		row(w, "Key", image.GetKeyId())
		row(w, "Copies", copiesText(image)+" "+strings.Join(image.GetCopies(), " "))
	})
}

func newImageShow(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "show NAME",
		Short:   "Show an image of the store",
		Example: `  bloomery image show debian-12`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Image, error) {
		answer, err := ask(ctx, c.images.GetImage, &bloomeryv1.GetImageRequest{Name: name})
		return answer.GetImage(), err
	}, set.printImage)
}

func newImageVerify(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "verify NAME",
		Short:   "Read every frame of a stored image again, on every coordinator that holds it, and check its signature",
		Long:    `A copy that is spoilt makes the command fail, and is fetched again from another coordinator.`,
		Example: `  bloomery image verify debian-12`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.VerifyImageResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
		defer cancel()
		answer, err := c.images.VerifyImage(ctx, connect.NewRequest(&bloomeryv1.VerifyImageRequest{Name: name}))
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	}, func(w io.Writer, answer *bloomeryv1.VerifyImageResponse) error {
		return set.printMessage(w, answer, func(w io.Writer) {
			row(w, "Image", answer.GetImage().GetName())
			row(w, "Sound", strings.Join(answer.GetVerified(), " "))
		})
	})
}

func newImageRemove(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "rm NAME",
		Short:   "Remove an image from the rack, unless a job installs it",
		Example: `  bloomery image rm debian-11`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.RemoveImageResponse, error) {
		return ask(ctx, c.images.RemoveImage, &bloomeryv1.RemoveImageRequest{Name: name})
	}, func(io.Writer, *bloomeryv1.RemoveImageResponse) error { return nil })
}
