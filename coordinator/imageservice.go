package coordinator

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

func imageMessage(e *images.Entry) *bloomeryv1.Image {
	m := e.Manifest
	return &bloomeryv1.Image{
		Name: m.Name, SizeBytes: m.Size, DataBytes: m.DataLength(), Frames: int32(len(m.Frames)),
		Os: m.OS.PrettyName, ManifestSha256: m.SHA256().String(), CreatedAt: timestamppb.New(m.Created),
	}
}

// imageError gives an error of the image store its code.
func imageError(err error) error {
	var field *images.FieldError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, images.ErrNotFound):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, images.ErrExists):
		return connect.NewError(connect.CodeAlreadyExists, err)
	case errors.Is(err, images.ErrSignature):
		return invalid("signature", "SIGNATURE_WRONG", "%v", err)
	case errors.Is(err, images.ErrCorrupt):
		return invalid("data", "IMAGE_CORRUPT", "%v", err)
	case errors.As(err, &field):
		return invalid("manifest."+field.Field, "MANIFEST_INVALID", "%v", err)
	}
	return err
}

// soundImage reads an image in full before a machine is touched for it: what has rotted in the store is known before the
// wipe, not in the middle of the write. An image that is not there is left to Steps, which lists those that are.
func (c *Coordinator) soundImage(ctx context.Context, name string) error {
	if images.ValidateName(name) != nil {
		return nil
	}
	_, err := c.Images.Verify(ctx, name)
	switch {
	case err == nil, errors.Is(err, images.ErrNotFound):
		return nil
	case errors.Is(err, images.ErrSignature):
		return notNow("spec.image", "IMAGE_SIGNATURE", "image %s: %v; add it again", name, err)
	case errors.Is(err, images.ErrCorrupt):
		return notNow("spec.image", "IMAGE_CORRUPT", "image %s: %v; remove it and add it again", name, err)
	}
	return err
}

// ListImages implements bloomery.v1.ImageService.
func (c *Coordinator) ListImages(context.Context, *connect.Request[bloomeryv1.ListImagesRequest]) (*connect.Response[bloomeryv1.ListImagesResponse], error) {
	entries, err := c.Images.List()
	if err != nil {
		c.Logger.Error("an image in the store is unsound", "error", err)
	}
	response := &bloomeryv1.ListImagesResponse{}
	for _, e := range entries {
		response.Images = append(response.Images, imageMessage(e))
	}
	return connect.NewResponse(response), nil
}

// GetImage implements bloomery.v1.ImageService.
func (c *Coordinator) GetImage(_ context.Context, r *connect.Request[bloomeryv1.GetImageRequest]) (*connect.Response[bloomeryv1.GetImageResponse], error) {
	e, err := c.Images.Get(r.Msg.GetName())
	if err != nil {
		return nil, imageError(err)
	}
	return connect.NewResponse(&bloomeryv1.GetImageResponse{Image: imageMessage(e), Manifest: e.ManifestBytes}), nil
}

// AddImage implements bloomery.v1.ImageService.
func (c *Coordinator) AddImage(ctx context.Context, stream *connect.ClientStream[bloomeryv1.AddImageRequest]) (*connect.Response[bloomeryv1.AddImageResponse], error) {
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), invalid("header", "REQUIRED", "the first message carries the header"))
	}
	header := stream.Msg().GetHeader()
	if header == nil {
		return nil, invalid("header", "REQUIRED", "the first message carries the header")
	}
	if _, err := images.DecodeManifest(header.GetManifest()); err != nil {
		return nil, invalid("header.manifest", "MANIFEST_INVALID", "%v", err)
	}
	upload, err := c.Images.Begin(header.GetName(), header.GetManifest(), header.GetSignature())
	if err != nil {
		return nil, imageError(err)
	}
	defer upload.Abort()
	for stream.Receive() {
		if _, err := upload.Write(stream.Msg().GetData()); err != nil {
			return nil, imageError(err)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, fmt.Errorf("receive image %s: %w", header.GetName(), err)
	}
	if err := upload.Commit(); err != nil {
		return nil, imageError(err)
	}
	e, err := c.Images.Get(header.GetName())
	if err != nil {
		return nil, imageError(err)
	}
	return connect.NewResponse(&bloomeryv1.AddImageResponse{Image: imageMessage(e)}), c.noteImage(ctx, "image.added", e.Manifest.Name)
}

// VerifyImage implements bloomery.v1.ImageService.
func (c *Coordinator) VerifyImage(ctx context.Context, r *connect.Request[bloomeryv1.VerifyImageRequest]) (*connect.Response[bloomeryv1.VerifyImageResponse], error) {
	e, err := c.Images.Verify(ctx, r.Msg.GetName())
	if err != nil {
		return nil, imageError(err)
	}
	return connect.NewResponse(&bloomeryv1.VerifyImageResponse{Image: imageMessage(e)}), nil
}

// RemoveImage implements bloomery.v1.ImageService.
func (c *Coordinator) RemoveImage(ctx context.Context, r *connect.Request[bloomeryv1.RemoveImageRequest]) (*connect.Response[bloomeryv1.RemoveImageResponse], error) {
	if err := c.Images.Remove(r.Msg.GetName()); err != nil {
		return nil, imageError(err)
	}
	return connect.NewResponse(&bloomeryv1.RemoveImageResponse{}), c.noteImage(ctx, "image.removed", r.Msg.GetName())
}

func (c *Coordinator) noteImage(ctx context.Context, kind, name string) error {
	return c.update(ctx, func(ch *change) error {
		return ch.note(&bloomeryv1.Event{Type: kind, Message: fmt.Sprintf("%s %s by %s", kind, name, callerOf(ctx).Name)}, map[string]any{"image": name})
	})
}
