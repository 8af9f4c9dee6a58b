package coordinator

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
	"bloomery/internal/pki"
)

// imageRack is coordinators on one database, each with an image store that the others can read.
type imageRack struct {
	t       *testing.T
	keys    string
	db      *store.Store
	auth    *pki.Authority
	public  images.PublicKey
	private images.PrivateKey
	nodes   map[string]*imageNode
	// roster is what all of them know of each other.
	roster *roster
}

type imageNode struct {
	*Coordinator
	dir  string
	url  string
	stop func()
}

func newImageRack(t *testing.T, nodes ...string) *imageRack {
	t.Helper()
	r := &imageRack{t: t, nodes: map[string]*imageNode{}, roster: &roster{}}
	var err error
	r.public, r.private, err = images.GenerateKey()
	must(t, err)
	dir := t.TempDir()
	keys := filepath.Join(dir, "pki")
	r.keys = keys
	must(t, pki.InitRack(keys, pki.InitOptions{Name: "test", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "anna", Node: "c1"}))
	r.auth, err = pki.LoadAuthority(keys)
	must(t, err)
	r.db, err = store.Open(t.Context(), store.Options{Dir: filepath.Join(dir, "dqlite"), SecretFile: filepath.Join(dir, "secret.key"), Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() {
		if err := r.db.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range nodes {
		r.join(name, t.TempDir())
	}
	return r
}

// join makes a coordinator with its images in a folder and starts to sync it.
func (r *imageRack) join(name, dir string) *imageNode {
	r.t.Helper()
	st, err := images.OpenStore(dir, r.public)
	must(r.t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(r.t.Output(), nil)).With("node", name)
	}
	timing := testTiming()
	c, err := New(Config{Node: name, PKI: r.keys, Timing: timing}, Deps{Store: r.db, Images: st, Authority: r.auth, Logger: log, roster: r.roster})
	must(r.t, err)
	server := httptest.NewUnstartedServer(c.Handler())
	server.TLS = r.auth.ServerTLS()
	server.StartTLS()
	n := &imageNode{Coordinator: c, dir: dir, url: server.URL}
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.syncImages(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
		server.Close()
		if err := st.Close(); err != nil {
			r.t.Error(err)
		}
		delete(r.nodes, name)
		r.enlist()
	}
	r.nodes[name] = n
	r.enlist()
	r.t.Cleanup(func() {
		if r.nodes[name] == n {
			n.stop()
		}
	})
	return n
}

// enlist tells all which nodes there are. They share one certificate, which is c1's, so that one is always there.
func (r *imageRack) enlist() {
	all := []store.Node{{Name: "c1"}}
	for name, n := range r.nodes {
		node := store.Node{Name: name, API: []string{n.url}}
		if name == "c1" {
			all[0] = node
		} else {
			all = append(all, node)
		}
	}
	_, err := r.roster.replace(all)
	must(r.t, err)
}

// image makes an image of random bytes.
func (r *imageRack) image(name string, size int) (manifest, signature, data []byte) {
	r.t.Helper()
	disk := make([]byte, size)
	_, err := rand.Read(disk)
	must(r.t, err)
	dir := filepath.Join(r.t.TempDir(), "image")
	_, err = images.Import(r.t.Context(), bytes.NewReader(disk), images.ImportOptions{Name: name, Out: dir, Key: &r.private})
	must(r.t, err)
	read := func(file string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, file))
		must(r.t, err)
		return b
	}
	return read(images.ManifestFile), read(images.SignatureFile), read(images.DataFile)
}

// add adds an image at a node as AddImage does after its stream.
func (r *imageRack) add(n *imageNode, name string, size int) *bloomeryv1.Image {
	r.t.Helper()
	manifest, signature, data := r.image(name, size)
	upload, err := n.Images.BeginReplacing(r.t.Context(), name, manifest, signature)
	must(r.t, err)
	_, err = upload.Write(data)
	must(r.t, err)
	image, err := n.commitImage(r.t.Context(), upload)
	must(r.t, err)
	return image
}

func (r *imageRack) mayAdd(name, sha, node string) error {
	return r.db.View(r.t.Context(), func(s *store.Reader) error {
		_, err := mayAddImage(s, name, sha, node)
		return err
	})
}

func (r *imageRack) list(n *imageNode) []*bloomeryv1.Image {
	r.t.Helper()
	answer, err := n.ListImages(r.t.Context(), connect.NewRequest(&bloomeryv1.ListImagesRequest{}))
	must(r.t, err)
	return answer.Msg.GetImages()
}

// eventually waits until the rack's images are held as wanted: "name: c1 c2".
func (r *imageRack) eventually(n *imageNode, want map[string][]string) {
	r.t.Helper()
	var got map[string][]string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		got = map[string][]string{}
		for _, image := range r.list(n) {
			got[image.GetName()] = image.GetCopies()
		}
		if cmp.Equal(want, got) {
			return
		}
	}
	r.t.Fatalf("copies (-want +got):\n%s", cmp.Diff(want, got))
}

func (r *imageRack) events(n *imageNode, kind string) []*bloomeryv1.Event {
	r.t.Helper()
	events, err := n.events(r.t.Context(), store.EventFilter{TypePrefix: kind, Limit: 1000})
	must(r.t, err)
	return events
}

func TestImagesAreCopied(t *testing.T) {
	r := newImageRack(t, "c1", "c2", "c3")
	image := r.add(r.nodes["c2"], "debian-12", 9<<20)
	if diff := cmp.Diff([]string{"c2"}, image.GetCopies()); diff != "" {
		t.Error(diff)
	}
	r.eventually(r.nodes["c1"], map[string][]string{"debian-12": {"c1", "c2", "c3"}})
	for name, n := range r.nodes {
		if _, err := n.Images.Verify(t.Context(), "debian-12"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		missing := -1
		must(t, r.db.View(t.Context(), func(s *store.Reader) (err error) { missing, err = s.ImagesMissing(name); return err }))
		if missing != 0 {
			t.Errorf("%s misses %d images", name, missing)
		}
	}
	if copied := r.events(r.nodes["c1"], "image.copied"); len(copied) != 2 {
		t.Errorf("%d events of copies, want two", len(copied))
	}

	for name := range r.nodes {
		if err := r.mayAdd("debian-12", "another", name); !errors.Is(err, images.ErrExists) {
			t.Errorf("%s: another debian-12: %v, want it refused everywhere", name, err)
		}
	}
	if err := r.mayAdd("debian-12", image.GetManifestSha256(), "c4"); err != nil {
		t.Errorf("the same image brought to a coordinator without a copy: %v", err)
	}
	must(t, r.db.Update(t.Context(), func(tx *store.Tx) error { return tx.DropImageCopies("") }))
	if err := r.mayAdd("debian-12", "another", "c4"); err != nil {
		t.Errorf("the name of an image of which no copy is left: %v", err)
	}
	r.eventually(r.nodes["c1"], map[string][]string{"debian-12": {"c1", "c2", "c3"}})

	_, err := r.nodes["c3"].RemoveImage(t.Context(), connect.NewRequest(&bloomeryv1.RemoveImageRequest{Name: "debian-12"}))
	must(t, err)
	r.eventually(r.nodes["c1"], map[string][]string{})
	for name, n := range r.nodes {
		until(t, name+" removes its copy", func() bool {
			_, err := n.Images.Get("debian-12")
			return errors.Is(err, images.ErrNotFound)
		})
	}
	_, err = r.nodes["c1"].RemoveImage(t.Context(), connect.NewRequest(&bloomeryv1.RemoveImageRequest{Name: "debian-12"}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("removing it again: %v", err)
	}
	// The name is free again.
	r.add(r.nodes["c1"], "debian-12", 1<<20)
	r.eventually(r.nodes["c1"], map[string][]string{"debian-12": {"c1", "c2", "c3"}})
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

// TestImagesOfACoordinatorThatWasAway comes back with a version that was replaced and one that was removed.
func TestImagesOfACoordinatorThatWasAway(t *testing.T) {
	r := newImageRack(t, "c1", "c2")
	r.add(r.nodes["c1"], "debian-12", 1<<20)
	r.add(r.nodes["c1"], "debian-11", 1<<20)
	r.eventually(r.nodes["c1"], map[string][]string{"debian-11": {"c1", "c2"}, "debian-12": {"c1", "c2"}})
	away := r.nodes["c2"]
	dir := away.dir
	away.stop()
	for _, name := range []string{"debian-11", "debian-12"} {
		_, err := r.nodes["c1"].RemoveImage(t.Context(), connect.NewRequest(&bloomeryv1.RemoveImageRequest{Name: name}))
		must(t, err)
	}
	fresh := r.add(r.nodes["c1"], "debian-12", 2<<20)
	r.eventually(r.nodes["c1"], map[string][]string{"debian-12": {"c1"}})

	back := r.join("c2", dir)
	r.eventually(back, map[string][]string{"debian-12": {"c1", "c2"}})
	e, err := back.Images.Verify(t.Context(), "debian-12")
	if err != nil || e.Manifest.SHA256().String() != fresh.GetManifestSha256() {
		t.Errorf("c2 has %v, %v; want the version that was added while it was away", e, err)
	}
	if _, err := back.Images.Get("debian-11"); !errors.Is(err, images.ErrNotFound) {
		t.Errorf("an image that was removed while c2 was away: %v", err)
	}
}

// TestSpoiltCopyIsFetchedAgain lets a copy rot in both of its files.
func TestSpoiltCopyIsFetchedAgain(t *testing.T) {
	for file, at := range map[string]int64{images.DataFile: 1000, images.SignatureFile: 60} {
		t.Run(file, func(t *testing.T) {
			r := newImageRack(t, "c1", "c2")
			r.add(r.nodes["c1"], "debian-12", 1<<20)
			r.eventually(r.nodes["c1"], map[string][]string{"debian-12": {"c1", "c2"}})
			c2 := r.nodes["c2"]
			flipAt(t, filepath.Join(c2.dir, "debian-12", file), at)
			if err := c2.soundImage(t.Context(), "debian-12"); connect.CodeOf(err) != connect.CodeUnavailable {
				t.Errorf("an install from the spoilt copy: %v, want UNAVAILABLE as c1 has a sound one", err)
			}
			until(t, "the copy is sound again", func() bool {
				_, err := c2.Images.Verify(t.Context(), "debian-12")
				return err == nil
			})
			r.eventually(r.nodes["c1"], map[string][]string{"debian-12": {"c1", "c2"}})
			if err := c2.soundImage(t.Context(), "debian-12"); err != nil {
				t.Error(err)
			}
			if spoilt := r.events(c2, "image.spoilt"); len(spoilt) != 1 {
				t.Errorf("%d events of the spoilt copy, want one", len(spoilt))
			}
		})
	}
}

// TestOnlyCopyIsSpoilt cannot be mended, is said once, and recovers when the bytes are right again.
func TestOnlyCopyIsSpoilt(t *testing.T) {
	r := newImageRack(t, "c1")
	c1 := r.nodes["c1"]
	r.add(c1, "debian-12", 1<<20)
	data := filepath.Join(c1.dir, "debian-12", images.DataFile)
	flipAt(t, data, 1000)
	_, err := c1.VerifyImage(t.Context(), connect.NewRequest(&bloomeryv1.VerifyImageRequest{Name: "debian-12"}))
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Reason != "IMAGE_CORRUPT" {
		t.Errorf("verify: %v, want IMAGE_CORRUPT", err)
	}
	if err := c1.soundImage(t.Context(), "debian-12"); !errors.As(err, &refusal) || refusal.Reason != "IMAGE_CORRUPT" {
		t.Errorf("install: %v, want IMAGE_CORRUPT", err)
	}
	until(t, "it is said that no other copy is there", func() bool { return len(r.events(c1, "image.copy_failed")) > 0 })
	time.Sleep(3 * firstCopyPause / 2)
	if failed := r.events(c1, "image.copy_failed"); len(failed) != 1 || failed[0].GetData().GetFields()["reason"].GetStringValue() != noCopy {
		t.Errorf("events %v, want one with %s", failed, noCopy)
	}
	flipAt(t, data, 1000)
	r.eventually(c1, map[string][]string{"debian-12": {"c1"}})
}

// TestImagesBeforeTheCatalogue are taken into it.
func TestImagesBeforeTheCatalogue(t *testing.T) {
	r := newImageRack(t)
	dir := t.TempDir()
	old, err := images.OpenStore(dir, r.public)
	must(t, err)
	manifest, signature, data := r.image("debian-11", 1<<20)
	upload, err := old.Begin(t.Context(), "debian-11", manifest, signature)
	must(t, err)
	_, err = upload.Write(data)
	must(t, err)
	must(t, upload.Commit())
	must(t, old.Close())
	c1 := r.join("c1", dir)
	r.join("c2", t.TempDir())
	r.eventually(c1, map[string][]string{"debian-11": {"c1", "c2"}})
}

// TestFullDiskIsSaid gives a coordinator a disk without room.
func TestFullDiskIsSaid(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: mounting a small file system needs root")
	}
	r := newImageRack(t, "c1")
	small := t.TempDir()
	must(t, unix.Mount("small", small, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	c2 := r.join("c2", small)
	r.add(r.nodes["c1"], "debian-12", 1<<20)
	until(t, "the full disk is said", func() bool { return len(r.events(c2, "image.copy_failed")) > 0 })
	if failed := r.events(c2, "image.copy_failed"); failed[0].GetData().GetFields()["reason"].GetStringValue() != noSpace {
		t.Errorf("event %v, want %s", failed[0], noSpace)
	}
	if _, err := c2.GetImage(t.Context(), connect.NewRequest(&bloomeryv1.GetImageRequest{Name: "debian-12"})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("an image that is not here: %v, want UNAVAILABLE so that clients ask another coordinator", err)
	}
	if image := r.list(c2)[0]; !slices.Equal(image.GetMissing(), []string{"c2"}) {
		t.Errorf("missing at %v, want c2", image.GetMissing())
	}
	manifest, signature, _ := r.image("debian-13", 1<<20)
	_, err := c2.Images.Begin(t.Context(), "debian-13", manifest, signature)
	if connect.CodeOf(imageError(err)) != connect.CodeResourceExhausted {
		t.Errorf("adding an image to a full disk: %v", err)
	}
	c2.stop() // before its disk goes
}

func flipAt(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	must(t, err)
}

func TestPlanImages(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	entry := func(name, version string) *images.Entry {
		data, err := (&images.Manifest{
			Format: images.Format, Name: name, Kind: images.KindDisk, Size: 1 << 20, SectorSize: images.SectorSize, FrameSize: images.FrameSize, Created: now,
			OS: images.OS{ID: version}, Frames: []images.Frame{{Length: 1 << 20, Zero: true}},
		}).Encode()
		must(t, err)
		m, err := images.DecodeManifest(data)
		must(t, err)
		return &images.Entry{Manifest: m}
	}
	sha := func(name, version string) string { return entry(name, version).Manifest.SHA256().String() }
	known := func(name, version string, removed bool) store.CatalogueImage {
		image := store.CatalogueImage{Image: &bloomeryv1.Image{Name: name, ManifestSha256: sha(name, version)}}
		if removed {
			image.Removed = now
		}
		return image
	}
	by := func(key string) store.CatalogueImage {
		image := known("a", "1", false)
		image.KeyId = key
		return image
	}
	copied := func(ago time.Duration) []store.ImageCopy {
		return []store.ImageCopy{{Name: "a", ManifestSHA256: sha("a", "1"), Node: "c1", Verified: now.Add(-ago)}}
	}
	for name, tc := range map[string]struct {
		catalogue []store.CatalogueImage
		copies    []store.ImageCopy
		here      []*images.Entry
		want      string
	}{
		"nothing":                   {},
		"sound":                     {[]store.CatalogueImage{known("a", "1", false)}, copied(time.Hour), []*images.Entry{entry("a", "1")}, ""},
		"long not looked at":        {[]store.CatalogueImage{known("a", "1", false)}, copied(25 * time.Hour), []*images.Entry{entry("a", "1")}, "verify"},
		"here but not on record":    {[]store.CatalogueImage{known("a", "1", false)}, nil, []*images.Entry{entry("a", "1")}, "verify"},
		"not here":                  {[]store.CatalogueImage{known("a", "1", false)}, nil, nil, "fetch"},
		"on record but not here":    {[]store.CatalogueImage{known("a", "1", false)}, copied(0), nil, "forget fetch"},
		"another version here":      {[]store.CatalogueImage{known("a", "1", false)}, nil, []*images.Entry{entry("a", "0")}, "fetch"},
		"by a revoked key":          {[]store.CatalogueImage{by("OLD")}, copied(0), nil, "forget"},
		"by a revoked key, settled": {[]store.CatalogueImage{by("OLD")}, nil, nil, ""},
		"signed anew, elsewhere":    {[]store.CatalogueImage{by("NEW")}, nil, nil, "fetch"},
		"removed":                   {[]store.CatalogueImage{known("a", "1", true)}, nil, []*images.Entry{entry("a", "1")}, "remove"},
		"removed, another version":  {[]store.CatalogueImage{known("a", "1", true)}, nil, []*images.Entry{entry("a", "0")}, "remove"},
		"removed and gone":          {[]store.CatalogueImage{known("a", "1", true)}, nil, nil, ""},
		"not known to the rack yet": {nil, nil, []*images.Entry{entry("a", "1")}, "adopt"},
	} {
		t.Run(name, func(t *testing.T) {
			plan, got := planImages(tc.catalogue, tc.copies, tc.here, map[string]bool{"OLD": true}, now), []string{}
			for _, part := range []struct {
				name string
				n    int
			}{{"adopt", len(plan.adopt)}, {"remove", len(plan.remove)}, {"forget", len(plan.forget)}, {"verify", len(plan.verify)}, {"fetch", len(plan.fetch)}} {
				for range part.n {
					got = append(got, part.name)
				}
			}
			if text := strings.Join(got, " "); text != tc.want {
				t.Errorf("plan is %q, want %q", text, tc.want)
			}
		})
	}
}

// TestVerifyEverywhere reads all copies from one coordinator, and names the one that is spoilt or cannot be asked.
func TestVerifyEverywhere(t *testing.T) {
	r := newImageRack(t, "c1", "c2", "c3")
	r.add(r.nodes["c1"], "debian-12", 1<<20)
	held := map[string][]string{"debian-12": {"c1", "c2", "c3"}}
	r.eventually(r.nodes["c1"], held)
	verify := func() ([]string, error) {
		answer, err := r.nodes["c1"].VerifyImage(t.Context(), connect.NewRequest(&bloomeryv1.VerifyImageRequest{Name: "debian-12"}))
		if err != nil {
			return nil, err
		}
		return answer.Msg.GetVerified(), nil
	}
	sound, err := verify()
	must(t, err)
	if diff := cmp.Diff(held["debian-12"], sound); diff != "" {
		t.Error(diff)
	}

	flipAt(t, filepath.Join(r.nodes["c2"].dir, "debian-12", images.DataFile), 1000)
	var refusal *Refusal
	if _, err := verify(); !errors.As(err, &refusal) || refusal.Reason != "IMAGE_CORRUPT" || !strings.Contains(err.Error(), "coordinator c2") || strings.Contains(err.Error(), "coordinator c3") {
		t.Errorf("a spoilt copy: %v, want c2 named", err)
	}
	until(t, "the copy is sound again", func() bool {
		sound, err := verify()
		return err == nil && len(sound) == 3
	})

	r.nodes["c3"].stop()
	if _, err := verify(); !errors.As(err, &refusal) || refusal.Reason != "COPY_NOT_VERIFIED" || !strings.Contains(err.Error(), "coordinator c3") {
		t.Errorf("a coordinator that is away: %v, want c3 named", err)
	}
}
