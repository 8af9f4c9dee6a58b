package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
)

// verdict is what one coordinator found of its copy; nil when it is sound.
type verdict struct {
	node string
	err  error
}

// VerifyImage implements bloomery.v1.ImageService.
func (c *Coordinator) VerifyImage(ctx context.Context, r *connect.Request[bloomeryv1.VerifyImageRequest]) (*connect.Response[bloomeryv1.VerifyImageResponse], error) {
	v, err := c.imageView(ctx)
	if err != nil {
		return nil, err
	}
	image, err := v.find(r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if err := v.refuseRevoked("name", image); err != nil {
		return nil, err
	}
	verdicts := c.verifyCopies(ctx, image, v.message(image).GetCopies())
	response := &bloomeryv1.VerifyImageResponse{Image: v.message(image)}
	for _, found := range verdicts {
		if found.err == nil {
			response.Verified = append(response.Verified, found.node)
		}
	}
	if len(response.GetVerified()) == len(verdicts) {
		return connect.NewResponse(response), nil
	}
	return nil, judge(image.GetName(), verdicts)
}

// verifyCopies lets every coordinator that holds an image read its copy, all at once. The own copy is read even when it is not on record.
func (c *Coordinator) verifyCopies(ctx context.Context, image store.CatalogueImage, holders []string) []verdict {
	nodes := slices.Clone(holders)
	if _, err := c.Images.Get(image.GetName()); !slices.Contains(nodes, c.config.Node) && (len(nodes) == 0 || !errors.Is(err, images.ErrNotFound)) {
		nodes = append(nodes, c.config.Node)
	}
	slices.Sort(nodes)
	verdicts := make([]verdict, len(nodes))
	var readers sync.WaitGroup
	for i, node := range nodes {
		readers.Go(func() { verdicts[i] = verdict{node, c.verifyAt(ctx, image, node)} })
	}
	readers.Wait()
	return verdicts
}

func (c *Coordinator) verifyAt(ctx context.Context, image store.CatalogueImage, node string) error {
	if node == c.config.Node {
		spoilt, err := c.verifyCopy(ctx, image)
		return errors.Join(spoilt, err)
	}
	others := c.others()
	i := slices.IndexFunc(others, func(n store.Node) bool { return n.Name == node })
	if i < 0 {
		return errors.New("it is no part of the rack any more")
	}
	client, done := c.peer(others[i])
	defer done()
	_, err := client.VerifyImageCopy(ctx, connect.NewRequest(&bloomeryv1.VerifyImageCopyRequest{Name: image.GetName()}))
	return err
}

// judge says what is wrong with which copies.
func judge(name string, verdicts []verdict) error {
	var wrong []string
	spoilt, forged := false, false
	for _, found := range verdicts {
		if found.err == nil {
			continue
		}
		wrong = append(wrong, fmt.Sprintf("coordinator %s: %v", found.node, found.err))
		spoilt = spoilt || errors.Is(found.err, images.ErrCorrupt) || connect.CodeOf(found.err) == connect.CodeInvalidArgument
		forged = forged || errors.Is(found.err, images.ErrSignature)
	}
	if forged {
		return invalid("signature", "SIGNATURE_WRONG", "image %s: %s", name, strings.Join(wrong, "; "))
	}
	if !spoilt {
		return notNow("name", "COPY_NOT_VERIFIED", "image %s: %s", name, strings.Join(wrong, "; "))
	}
	return invalid("data", "IMAGE_CORRUPT", "image %s: %s", name, strings.Join(wrong, "; "))
}

// VerifyImageCopy implements bloomeryv1connect.NodeServiceHandler.
func (c *Coordinator) VerifyImageCopy(ctx context.Context, r *connect.Request[bloomeryv1.VerifyImageCopyRequest]) (*connect.Response[bloomeryv1.VerifyImageCopyResponse], error) {
	v, err := c.imageView(ctx)
	if err != nil {
		return nil, err
	}
	image, err := v.find(r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if err := v.refuseRevoked("name", image); err != nil {
		return nil, err
	}
	spoilt, err := c.verifyCopy(ctx, image)
	if err := imageError(errors.Join(spoilt, err)); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.VerifyImageCopyResponse{}), nil
}
