package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
)

const (
	// copyChunk is how much of an image is asked for at a time, in bytes.
	copyChunk = 4 << 20
	// A copy that failed is tried again after firstCopyPause, doubled each time up to maxCopyPause.
	firstCopyPause = time.Second
	maxCopyPause   = time.Minute
	// copyPatience is for how long the holders of an image are asked before the copy counts as failed.
	copyPatience = 20 * time.Second
	// shortestPause keeps a store that cannot be read from being asked all the time.
	shortestPause = 200 * time.Millisecond
)

// Reasons why an image could not be copied, in events.
const (
	noCopy       = "NO_COPY"
	noSpace      = "DISK_FULL"
	copyCorrupt  = "IMAGE_CORRUPT"
	copyFetching = "FETCH_FAILED"
	keyRevoked   = "KEY_REVOKED"
)

// imageSync keeps this coordinator's store like the rack's catalogue.
type imageSync struct {
	c *Coordinator
	// failed says what could not be done of an image, by its name.
	failed map[string]imageFailure
}

type imageFailure struct {
	tries  int
	until  time.Time
	reason string
}

// syncImages fetches, verifies and removes images until the context ends. It looks when an image is added or removed anywhere, and now and
// then. One image is copied at a time; an interrupted copy goes on from what was received.
func (c *Coordinator) syncImages(ctx context.Context) error {
	wake, done := c.hub.subscribe("images")
	defer done()
	s := &imageSync{c: c, failed: map[string]imageFailure{}}
	for {
		if err := s.pass(ctx); err != nil && ctx.Err() == nil {
			c.Logger.Warn("compare the image store with the rack's catalogue", "error", err)
		}
		timer := time.NewTimer(s.pause())
		select {
		case <-ctx.Done():
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// pause is how long to wait for a hint: until the next look, or until what failed is to be tried again.
func (s *imageSync) pause() time.Duration {
	every := max(s.c.config.Timing.Images, shortestPause)
	pause := every/2 + rand.N(every)
	for _, f := range s.failed {
		pause = min(pause, max(time.Until(f.until), shortestPause))
	}
	return pause
}

// pass does once what is to be done.
func (s *imageSync) pass(ctx context.Context) error {
	plan, err := s.settle(ctx)
	if err != nil {
		return err
	}
	s.forget(plan)
	swept, err := s.c.Images.Sweep(s.c.config.Now())
	if err != nil {
		return err
	}
	if len(swept) > 0 {
		s.c.Logger.Info("removed what interrupted copies and uploads had left", "folders", swept)
	}
	for _, image := range plan.verify {
		if s.rests(image.GetName()) {
			continue
		}
		spoilt, err := s.c.verifyCopy(ctx, image)
		if err != nil {
			return err
		}
		if spoilt != nil {
			plan.fetch = append(plan.fetch, image)
			continue
		}
		delete(s.failed, image.GetName())
	}
	for _, image := range plan.fetch {
		if s.rests(image.GetName()) {
			continue
		}
		if reason, err := s.fetch(ctx, image); err != nil {
			if ctx.Err() != nil {
				return err
			}
			s.fail(ctx, image, reason, err)
			continue
		}
		delete(s.failed, image.GetName())
	}
	return nil
}

// forget drops the failures of images that there is nothing to do for any more.
func (s *imageSync) forget(plan imagePlan) {
	for name := range s.failed {
		of := func(image store.CatalogueImage) bool { return image.GetName() == name }
		if !slices.ContainsFunc(plan.verify, of) && !slices.ContainsFunc(plan.fetch, of) {
			delete(s.failed, name)
		}
	}
}

func (s *imageSync) rests(name string) bool { return time.Now().Before(s.failed[name].until) }

// settle makes the plan and does what needs no reading of data. No image is added or removed meanwhile.
func (s *imageSync) settle(ctx context.Context) (imagePlan, error) {
	c := s.c
	revoked, err := c.loadImageKeys(ctx)
	if err != nil {
		return imagePlan{}, err
	}
	c.imageChanges.Lock()
	defer c.imageChanges.Unlock()
	var catalogue []store.CatalogueImage
	var copies []store.ImageCopy
	err = c.Store.View(ctx, func(r *store.Reader) (err error) {
		if catalogue, err = r.CatalogueImages(); err != nil {
			return err
		}
		copies, err = r.ImageCopies(c.config.Node)
		return err
	})
	if err != nil {
		return imagePlan{}, err
	}
	here, err := c.Images.List()
	if err != nil {
		// Those that are unsound are not in the list, so they are fetched, but for those whose key was revoked.
		c.Logger.Error("an image in the store cannot be used", "error", err)
	}
	plan := planImages(catalogue, copies, here, revoked, c.config.Now())
	for _, image := range catalogue {
		// What cannot be used is not in the list, and has to go as well.
		if name := image.GetName(); !image.Removed.IsZero() && !slices.Contains(plan.remove, name) && c.Images.Has(name) {
			plan.remove = append(plan.remove, name)
		}
	}
	for _, name := range plan.remove {
		if err := c.Images.Remove(name); err != nil && !errors.Is(err, images.ErrNotFound) {
			return plan, err
		}
		c.Logger.Info("removed an image that the rack no longer has", "image", name)
	}
	if len(plan.adopt)+len(plan.forget)+len(plan.label) == 0 {
		return plan, nil
	}
	return plan, c.update(ctx, func(ch *change) error {
		for _, e := range plan.adopt {
			if _, err := ch.CatalogueImage(e.Manifest.Name); err == nil {
				continue // another coordinator was quicker
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
			if err := ch.SaveCatalogueImage(imageMessage(e), c.config.Node); err != nil {
				return err
			}
			ch.topics["images"] = true
		}
		for _, image := range plan.label {
			if err := ch.LabelCatalogueImage(image); err != nil {
				return err
			}
		}
		for _, name := range plan.forget {
			if err := ch.DropImageCopy(name, c.config.Node); err != nil {
				return err
			}
		}
		return nil
	})
}

// verifyCopy reads this coordinator's copy in full and notes what it found; spoilt says what is wrong with the copy.
func (c *Coordinator) verifyCopy(ctx context.Context, image store.CatalogueImage) (spoilt, err error) {
	_, verifyErr := c.Images.Verify(ctx, image.GetName())
	switch {
	case verifyErr == nil:
		return nil, c.noteCopy(ctx, image.GetName(), image.GetManifestSha256(), nil)
	case errors.Is(verifyErr, images.ErrCorrupt), errors.Is(verifyErr, images.ErrSignature):
		return verifyErr, c.noteSpoilt(ctx, image.GetName(), verifyErr)
	}
	return nil, verifyErr
}

// noteCopy puts on record that this coordinator holds an image, with an event unless it is nil.
func (c *Coordinator) noteCopy(ctx context.Context, name, sha string, event func(*change) error) error {
	return c.update(ctx, func(ch *change) error {
		if err := ch.SaveImageCopy(name, sha, c.config.Node); err != nil {
			return err
		}
		if event == nil {
			return nil
		}
		return event(ch)
	})
}

// noteSpoilt puts on record that this coordinator's copy cannot be used, once, and lets syncImages fetch it again.
func (c *Coordinator) noteSpoilt(ctx context.Context, name string, spoilt error) error {
	return c.update(ctx, func(ch *change) error {
		copies, err := ch.ImageCopies(c.config.Node)
		if err != nil {
			return err
		}
		for _, own := range copies {
			if own.Name != name {
				continue
			}
			if err := ch.DropImageCopy(name, c.config.Node); err != nil {
				return err
			}
			ch.topics["images"] = true
			return ch.note(&bloomeryv1.Event{Type: "image.spoilt", Severity: bloomeryv1.Severity_SEVERITY_ERROR,
				Message: fmt.Sprintf("the copy of image %s on coordinator %s is spoilt: %v", name, c.config.Node, spoilt)},
				map[string]any{"image": name, "node": c.config.Node})
		}
		return nil
	})
}

// fail notes a failure; an event tells of it when its reason is a new one.
func (s *imageSync) fail(ctx context.Context, image store.CatalogueImage, reason string, failure error) {
	name := image.GetName()
	f := s.failed[name]
	isNew := f.reason != reason
	pause := min(firstCopyPause<<min(f.tries, 10), maxCopyPause)
	s.failed[name] = imageFailure{f.tries + 1, time.Now().Add(pause/2 + rand.N(pause)), reason}
	s.c.Logger.Warn("copy an image", "image", name, "reason", reason, "tries", f.tries+1, "error", failure)
	if !isNew {
		return
	}
	err := s.c.update(ctx, func(ch *change) error {
		return ch.note(&bloomeryv1.Event{Type: "image.copy_failed", Severity: bloomeryv1.Severity_SEVERITY_WARNING,
			Message: clipTo(fmt.Sprintf("coordinator %s has no copy of image %s yet: %v", s.c.config.Node, name, failure), 1000)},
			map[string]any{"image": name, "node": s.c.config.Node, "reason": reason})
	})
	if err != nil && ctx.Err() == nil {
		s.c.Logger.Error("store an image's event", "error", err)
	}
}

// fetch copies an image from coordinators that hold it. Signature and frames are verified as they arrive.
func (s *imageSync) fetch(ctx context.Context, image store.CatalogueImage) (reason string, err error) {
	c, name, begin := s.c, image.GetName(), time.Now()
	source, done, err := c.imageSource(ctx, name)
	if err != nil {
		return copyFetching, err
	}
	if source == nil {
		return noCopy, errors.New("no other coordinator holds it; add it again if it stays so")
	}
	defer done()
	manifest, signature, err := source.FetchManifest(ctx, name)
	if err != nil {
		return copyFetching, err
	}
	upload, err := c.Images.BeginReplacing(ctx, name, manifest, signature)
	if err != nil {
		return copyReason(err), err
	}
	defer upload.Abort()
	if sha := upload.Manifest().SHA256().String(); sha != image.GetManifestSha256() {
		upload.Discard()
		return copyFetching, fmt.Errorf("the manifest that came has sha256 %s, want %s", sha, image.GetManifestSha256())
	}
	if err := receive(ctx, source, upload); err != nil {
		return copyReason(err), err
	}
	c.imageChanges.Lock()
	defer c.imageChanges.Unlock()
	var now store.CatalogueImage
	err = c.Store.View(ctx, func(r *store.Reader) (err error) { now, err = r.CatalogueImage(name); return err })
	if err != nil {
		return copyFetching, err
	}
	if !now.Removed.IsZero() || now.GetManifestSha256() != image.GetManifestSha256() {
		upload.Discard()
		return "", nil // removed or replaced meanwhile: the next look sees it
	}
	if err := upload.Commit(); err != nil {
		return copyReason(err), err
	}
	return "", c.noteCopy(ctx, name, image.GetManifestSha256(), func(ch *change) error {
		ch.topics["images"] = true
		size, seconds := image.GetDataBytes(), time.Since(begin).Seconds()
		return ch.note(&bloomeryv1.Event{Type: "image.copied", Message: fmt.Sprintf("coordinator %s has copied image %s (%d bytes in %.1f s)", c.config.Node, name, size, seconds)},
			map[string]any{"image": name, "node": c.config.Node, "bytes": float64(size), "seconds": seconds})
	})
}

// imageSource reads an image from the other coordinators that hold it, with this one's certificate; nil when there is none. done gives its
// connections up.
func (c *Coordinator) imageSource(ctx context.Context, name string) (source images.Source, done func(), err error) {
	var copies []store.ImageCopy
	err = c.Store.View(ctx, func(r *store.Reader) (err error) { copies, err = r.ImageCopies(""); return err })
	if err != nil {
		return nil, nil, err
	}
	peers := peerTransports{}
	from := &images.HTTPSource{Patience: copyPatience, Client: &http.Client{Transport: peers}}
	for _, n := range c.others() {
		if slices.ContainsFunc(copies, func(copy store.ImageCopy) bool { return copy.Name == name && copy.Node == n.Name }) {
			peers[n.Name] = c.peerClient(n)
			from.BaseURLs = append(from.BaseURLs, "https://"+n.Name)
		}
	}
	if len(peers) == 0 {
		return nil, nil, nil
	}
	return from, peers.close, nil
}

// peerTransports sends a request to the coordinator whose name stands in its URL.
type peerTransports map[string]*http.Client

// RoundTrip implements http.RoundTripper.
func (p peerTransports) RoundTrip(r *http.Request) (*http.Response, error) {
	return p[r.URL.Host].Transport.RoundTrip(r)
}

func (p peerTransports) close() {
	for _, client := range p {
		client.CloseIdleConnections()
	}
}

// receive reads the data of an upload from a source, in order, from where an earlier one stopped.
func receive(ctx context.Context, source images.Source, upload *images.Upload) error {
	m := upload.Manifest()
	chunk := make([]byte, min(copyChunk, m.DataLength()))
	for offset := upload.Offset(); offset < m.DataLength(); offset += int64(len(chunk)) {
		chunk = chunk[:min(int64(len(chunk)), m.DataLength()-offset)]
		if err := source.ReadRange(ctx, m.Name, chunk, offset); err != nil {
			return err
		}
		if _, err := upload.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}

func copyReason(err error) string {
	switch {
	case errors.Is(err, images.ErrNoSpace):
		return noSpace
	case errors.Is(err, images.ErrRevoked):
		return keyRevoked
	case errors.Is(err, images.ErrCorrupt), errors.Is(err, images.ErrSignature):
		return copyCorrupt
	}
	return copyFetching
}
