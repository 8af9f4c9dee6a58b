package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
)

func imageMessage(e *images.Entry) *bloomeryv1.Image {
	m := e.Manifest
	return &bloomeryv1.Image{
		Name: m.Name, SizeBytes: m.Size, DataBytes: m.DataLength(), Frames: int32(len(m.Frames)),
		Os: m.OS.PrettyName, ManifestSha256: m.SHA256().String(), CreatedAt: timestamppb.New(m.Created), KeyId: images.SignedBy(e.Signature),
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
	case errors.Is(err, images.ErrUploading):
		return connect.NewError(connect.CodeAborted, err)
	case errors.Is(err, images.ErrNoSpace):
		return connect.NewError(connect.CodeResourceExhausted, err)
	case errors.Is(err, images.ErrRevoked):
		return invalid("signature", keyRevoked, "%v", err)
	case errors.Is(err, images.ErrSignature):
		return invalid("signature", "SIGNATURE_WRONG", "%v", err)
	case errors.Is(err, images.ErrCorrupt):
		return invalid("data", "IMAGE_CORRUPT", "%v", err)
	case errors.As(err, &field):
		return invalid("manifest."+field.Field, "MANIFEST_INVALID", "%v", err)
	}
	return err
}

// imageView is the catalogue with what is known of the copies.
type imageView struct {
	catalogue []store.CatalogueImage
	copies    []store.ImageCopy
	nodes     []string
	// revoked are ids of keys.
	revoked map[string]bool
}

func (c *Coordinator) imageView(ctx context.Context) (imageView, error) {
	var v imageView
	revoked, err := c.loadImageKeys(ctx)
	if err != nil {
		return v, err
	}
	v.revoked = revoked
	err = c.Store.View(ctx, func(r *store.Reader) (err error) {
		if v.catalogue, err = r.CatalogueImages(); err != nil {
			return err
		}
		v.copies, err = r.ImageCopies("")
		return err
	})
	v.nodes = []string{c.config.Node}
	for _, n := range c.others() {
		v.nodes = append(v.nodes, n.Name)
	}
	slices.Sort(v.nodes)
	return v, err
}

// message is an image of the catalogue with the names of those that hold it and of those that do not; neither when its key was revoked.
func (v imageView) message(image store.CatalogueImage) *bloomeryv1.Image {
	m := proto.CloneOf(image.Image)
	if m.KeyRevoked = v.revoked[m.GetKeyId()]; m.KeyRevoked {
		return m // no copy of it is of any use
	}
	for _, copy := range v.copies {
		if copy.Name == m.GetName() {
			m.Copies = append(m.Copies, copy.Node)
		}
	}
	for _, node := range v.nodes {
		if !slices.Contains(m.GetCopies(), node) {
			m.Missing = append(m.Missing, node)
		}
	}
	return m
}

// find is an image that the rack has now.
func (v imageView) find(name string) (store.CatalogueImage, error) {
	for _, image := range v.catalogue {
		if image.GetName() == name && image.Removed.IsZero() {
			return image, nil
		}
	}
	return store.CatalogueImage{}, connect.NewError(connect.CodeNotFound, fmt.Errorf("image %s: %w", clip(name), images.ErrNotFound))
}

// notHereYet says that another coordinator can answer what this one cannot for the moment; clients go there.
func (c *Coordinator) notHereYet(image *bloomeryv1.Image) error {
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("image %s has not been copied to coordinator %s yet; it is on %s: ask there, or here again in a while",
		image.GetName(), c.config.Node, list(image.GetCopies())))
}

// soundImage reads an image in full before a machine is touched for it: what has rotted in the store is known before the
// wipe, not in the middle of the write. An image that is not there is left to Steps, which lists those that are.
func (c *Coordinator) soundImage(ctx context.Context, name string) error {
	if images.ValidateName(name) != nil {
		return nil
	}
	v, err := c.imageView(ctx)
	if err != nil {
		return err
	}
	image, err := v.find(name)
	if err != nil {
		return nil
	}
	if err := v.refuseRevoked("spec.image", image); err != nil {
		return err
	}
	e, err := c.Images.Verify(ctx, name)
	spoilt := errors.Is(err, images.ErrCorrupt) || errors.Is(err, images.ErrSignature)
	if spoilt {
		if noteErr := c.noteSpoilt(ctx, name, err); noteErr != nil {
			return noteErr
		}
	}
	others := slices.DeleteFunc(v.message(image).GetCopies(), func(node string) bool { return node == c.config.Node })
	switch {
	case err == nil && e.Manifest.SHA256().String() == image.GetManifestSha256():
		return nil
	case (err == nil || spoilt || errors.Is(err, images.ErrNotFound)) && len(others) > 0:
		return c.notHereYet(&bloomeryv1.Image{Name: name, Copies: others})
	case err == nil, errors.Is(err, images.ErrNotFound):
		return notNow("spec.image", "IMAGE_LOST", "image %s: no coordinator that can be reached holds it; add it again", name)
	case errors.Is(err, images.ErrSignature):
		return notNow("spec.image", "IMAGE_SIGNATURE", "image %s: %v; add it again", name, err)
	case errors.Is(err, images.ErrCorrupt):
		return notNow("spec.image", "IMAGE_CORRUPT", "image %s: %v; remove it and add it again", name, err)
	}
	return err
}

// ListImages implements bloomery.v1.ImageService.
func (c *Coordinator) ListImages(ctx context.Context, _ *connect.Request[bloomeryv1.ListImagesRequest]) (*connect.Response[bloomeryv1.ListImagesResponse], error) {
	v, err := c.imageView(ctx)
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListImagesResponse{}
	for _, image := range v.catalogue {
		if image.Removed.IsZero() {
			response.Images = append(response.Images, v.message(image))
		}
	}
	return connect.NewResponse(response), nil
}

// GetImage implements bloomery.v1.ImageService.
func (c *Coordinator) GetImage(ctx context.Context, r *connect.Request[bloomeryv1.GetImageRequest]) (*connect.Response[bloomeryv1.GetImageResponse], error) {
	v, err := c.imageView(ctx)
	if err != nil {
		return nil, err
	}
	image, err := v.find(r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	m := v.message(image)
	if err := v.refuseRevoked("name", image); err != nil {
		return nil, err
	}
	e, err := c.Images.Get(m.GetName())
	if errors.Is(err, images.ErrNotFound) || err == nil && e.Manifest.SHA256().String() != m.GetManifestSha256() {
		return nil, c.notHereYet(m)
	}
	if err != nil {
		return nil, imageError(err)
	}
	return connect.NewResponse(&bloomeryv1.GetImageResponse{Image: m, Manifest: e.ManifestBytes}), nil
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
	manifest, err := images.DecodeManifest(header.GetManifest())
	if err != nil {
		return nil, invalid("header.manifest", "MANIFEST_INVALID", "%v", err)
	}
	if _, err := c.loadImageKeys(ctx); err != nil {
		return nil, err
	}
	var known bool
	err = c.Store.View(ctx, func(r *store.Reader) (err error) {
		known, err = mayAddImage(r, header.GetName(), manifest.SHA256().String(), c.config.Node)
		return err
	})
	if err != nil {
		return nil, imageError(err)
	}
	begin := c.Images.Begin
	if known {
		// What is left here of that name is spoilt, or was removed from the rack.
		begin = c.Images.BeginReplacing
	}
	upload, err := begin(ctx, header.GetName(), header.GetManifest(), header.GetSignature())
	if err != nil {
		return nil, imageError(err)
	}
	defer upload.Abort()
	if err := goOn(upload, header.GetOffset()); err != nil {
		return nil, err
	}
	for stream.Receive() {
		if _, err := upload.Write(stream.Msg().GetData()); err != nil {
			return nil, imageError(err)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, fmt.Errorf("receive image %s: %w", header.GetName(), err)
	}
	image, err := c.commitImage(ctx, upload)
	if err != nil {
		return nil, imageError(err)
	}
	return connect.NewResponse(&bloomeryv1.AddImageResponse{Image: image}), nil
}

// goOn makes an upload ready for data from an offset on.
func goOn(upload *images.Upload, offset int64) error {
	if here := upload.Offset(); offset == here {
		return nil
	} else if offset != 0 {
		return connect.NewError(connect.CodeAborted, fmt.Errorf("storing image %s: %d bytes of its data are here, not %d: ask again how many and go on from there",
			upload.Manifest().Name, here, offset))
	}
	return imageError(upload.Restart())
}

// GetImageUpload implements bloomery.v1.ImageService.
func (c *Coordinator) GetImageUpload(_ context.Context, r *connect.Request[bloomeryv1.GetImageUploadRequest]) (*connect.Response[bloomeryv1.GetImageUploadResponse], error) {
	var digest images.Digest
	if err := digest.UnmarshalText([]byte(r.Msg.GetManifestSha256())); err != nil {
		return nil, invalid("manifest_sha256", "DIGEST_INVALID", "%v", err)
	}
	received, err := c.Images.Received(digest)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.GetImageUploadResponse{ReceivedBytes: received}), nil
}

// mayAddImage says whether an image may be added at a coordinator, and whether the rack has ever known that name. A name that is taken can be
// had again when no copy is left anywhere, and a copy of the very same image can always be brought to a coordinator that has none.
func mayAddImage(r *store.Reader, name, manifestSHA256, node string) (known bool, err error) {
	image, err := r.CatalogueImage(name)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	keys, err := r.ImageKeys()
	if err != nil {
		return false, err
	}
	if revokedKeys(keys)[image.GetKeyId()] {
		return true, nil // whatever copies there are, none is of use
	}
	copies, err := r.ImageCopies("")
	if err != nil {
		return false, err
	}
	for _, copy := range copies { // of an image that was removed there are none
		if copy.Name == name && (copy.Node == node || image.GetManifestSha256() != manifestSHA256) {
			return true, fmt.Errorf("storing image %s: coordinator %s has it: %w", name, copy.Node, images.ErrExists)
		}
	}
	return true, nil
}

// commitImage makes a whole upload an image of the rack. When the record fails the image stays here, and is recorded when that works again.
func (c *Coordinator) commitImage(ctx context.Context, upload *images.Upload) (*bloomeryv1.Image, error) {
	c.imageChanges.Lock()
	defer c.imageChanges.Unlock()
	if err := upload.Commit(); err != nil {
		return nil, err
	}
	e, err := c.Images.Get(upload.Manifest().Name)
	if err != nil {
		return nil, err
	}
	image := imageMessage(e)
	err = c.update(ctx, func(ch *change) error {
		if _, err := mayAddImage(&ch.Reader, image.GetName(), image.GetManifestSha256(), c.config.Node); err != nil {
			return err
		}
		if err := errors.Join(ch.SaveCatalogueImage(image, c.config.Node), ch.SaveImageCopy(image.GetName(), image.GetManifestSha256(), c.config.Node)); err != nil {
			return err
		}
		return noteImage(ctx, ch, "image.added", image.GetName())
	})
	image.Copies = []string{c.config.Node}
	for _, n := range c.others() {
		image.Missing = append(image.Missing, n.Name)
	}
	return image, err
}

// RemoveImage implements bloomery.v1.ImageService.
func (c *Coordinator) RemoveImage(ctx context.Context, r *connect.Request[bloomeryv1.RemoveImageRequest]) (*connect.Response[bloomeryv1.RemoveImageResponse], error) {
	name := r.Msg.GetName()
	c.imageChanges.Lock()
	defer c.imageChanges.Unlock()
	err := c.update(ctx, func(ch *change) error {
		image, err := ch.CatalogueImage(clip(name))
		if errors.Is(err, store.ErrNotFound) || err == nil && !image.Removed.IsZero() {
			return imageError(fmt.Errorf("removing image %s: %w", clip(name), images.ErrNotFound))
		}
		if err != nil {
			return err
		}
		jobs, err := ch.Jobs(store.JobFilter{Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, Limit: maxRunningJobs})
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if writesImage(j.Job, name) {
				return notNow("name", "IMAGE_IN_USE", "job %s installs image %s on machine %s", j.GetId(), name, j.GetMachine())
			}
		}
		if err := ch.RemoveCatalogueImage(name); err != nil {
			return err
		}
		return noteImage(ctx, ch, "image.removed", name)
	})
	if err != nil {
		return nil, err
	}
	if err := c.Images.Remove(name); err != nil && !errors.Is(err, images.ErrNotFound) {
		// The rack no longer has it; syncImages removes what is left here.
		c.Logger.Error("remove an image's data", "image", name, "error", err)
	}
	return connect.NewResponse(&bloomeryv1.RemoveImageResponse{}), nil
}

// writesImage says whether a job has yet to finish writing an image.
func writesImage(j *bloomeryv1.Job, name string) bool {
	return slices.ContainsFunc(j.GetSteps(), func(s *bloomeryv1.Step) bool {
		return imageOf(s) == name && s.GetStatus() != bloomeryv1.StepStatus_STEP_STATUS_DONE
	})
}

// noteImage records what was done to an image, and lets the other coordinators look.
func noteImage(ctx context.Context, ch *change, kind, name string) error {
	ch.topics["images"] = true
	verb := strings.TrimPrefix(kind, "image.")
	return ch.note(&bloomeryv1.Event{Type: kind, Message: fmt.Sprintf("image %s was %s by %s", name, verb, callerOf(ctx).Name)}, map[string]any{"image": name})
}
