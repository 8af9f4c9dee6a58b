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
		newImageList(set), newImageShow(set), newImageVerify(set), newImageRemove(set))
}

func newImageList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the images in the rack's store",
		Example: `  bloomery image list
  bloomery image list -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.images.ListImages, &bloomeryv1.ListImagesRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "NAME", "SYSTEM", "DISK", "DATA", "FRAMES", "COPIES", "MANIFEST")
				for _, image := range answer.GetImages() {
					row(w, image.GetName(), image.GetOs(), bytesText(image.GetSizeBytes()), bytesText(image.GetDataBytes()),
						fmt.Sprint(image.GetFrames()), copiesText(image), image.GetManifestSha256()[:min(12, len(image.GetManifestSha256()))])
				}
			})
		},
	}
}

// copiesText says on how many of the rack's coordinators an image is.
func copiesText(image *bloomeryv1.Image) string {
	return fmt.Sprintf("%d/%d", len(image.GetCopies()), len(image.GetCopies())+len(image.GetMissing()))
}

func (s *settings) printImage(w io.Writer, image *bloomeryv1.Image) error {
	return s.printMessage(w, image, func(w io.Writer) {
		row(w, "Image", image.GetName())
		row(w, "System", image.GetOs())
		row(w, "Disk", bytesText(image.GetSizeBytes()))
		row(w, "Data", fmt.Sprintf("%s in %d frames", bytesText(image.GetDataBytes()), image.GetFrames()))
		row(w, "Manifest", "sha256 "+image.GetManifestSha256())
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
		Short:   "Read every frame of a stored image again, at one coordinator, and check its signature",
		Example: `  bloomery image verify debian-12`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Image, error) {
		ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
		defer cancel()
		answer, err := c.images.VerifyImage(ctx, connect.NewRequest(&bloomeryv1.VerifyImageRequest{Name: name}))
		if err != nil {
			return nil, err
		}
		return answer.Msg.GetImage(), nil
	}, set.printImage)
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
