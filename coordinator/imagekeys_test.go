package coordinator

import (
	"encoding/base64"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
	"bloomery/internal/pki"
)

func (r *imageRack) addKey(n *imageNode, text string) (*bloomeryv1.ImageKey, error) {
	answer, err := n.AddImageKey(r.t.Context(), connect.NewRequest(&bloomeryv1.AddImageKeyRequest{PublicKey: text}))
	if err != nil {
		return nil, err
	}
	return answer.Msg.GetKey(), nil
}

func (r *imageRack) revokeKey(n *imageNode, id string) error {
	_, err := n.RevokeImageKey(r.t.Context(), connect.NewRequest(&bloomeryv1.RevokeImageKeyRequest{Id: id}))
	return err
}

// get asks a node for a file of an image, as an operator.
func (r *imageRack) get(n *imageNode, path string) int {
	r.t.Helper()
	cert, key := pki.OperatorFiles(r.keys, "anna")
	config, err := pki.ClientTLS(filepath.Join(r.keys, pki.CACert), cert, key)
	must(r.t, err)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	response, err := client.Get(n.url + path)
	must(r.t, err)
	must(r.t, response.Body.Close())
	return response.StatusCode
}

func wantReason(t *testing.T, what string, err error, reason string) {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Reason != reason {
		t.Errorf("%s: %v, want %s", what, err, reason)
	}
}

// TestRevokedImageKey takes the trust from a key while both coordinators hold an image that it has signed.
func TestRevokedImageKey(t *testing.T) {
	r := newImageRack(t, "c1", "c2")
	c1, c2 := r.nodes["c1"], r.nodes["c2"]
	must(t, c1.importOperators(t.Context()))
	r.add(c1, "debian-12", 1<<20)
	r.eventually(c1, map[string][]string{"debian-12": {"c1", "c2"}})
	old := images.KeyID(r.public)
	if image := r.list(c2)[0]; image.GetKeyId() != old || image.GetKeyRevoked() {
		t.Errorf("image is by key %s, revoked %v; want %s", image.GetKeyId(), image.GetKeyRevoked(), old)
	}
	wantReason(t, "revoking the only key", r.revokeKey(c1, old), "LAST_KEY")

	public, private, err := images.GenerateKey()
	must(t, err)
	next, err := r.addKey(c2, public.String())
	must(t, err)
	if _, err := r.addKey(c1, public.String()); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("adding it again: %v", err)
	}
	if status := r.get(c1, "/images/debian-12/data"); status != http.StatusOK {
		t.Errorf("the image before: status %d", status)
	}
	must(t, r.revokeKey(c1, old))
	wantReason(t, "revoking it again", r.revokeKey(c1, old), keyRevoked)
	wantReason(t, "revoking the last trusted one", r.revokeKey(c1, next.GetId()), "LAST_KEY")
	if err := r.revokeKey(c1, "0000000000000000"); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("revoking none: %v", err)
	}
	_, err = r.addKey(c1, r.public.String())
	wantReason(t, "adding a revoked key", err, keyRevoked)

	// Whatever asks the database knows at once, on the coordinator that nobody told, too.
	for name, n := range r.nodes {
		wantReason(t, name+" installs", n.soundImage(t.Context(), "debian-12"), keyRevoked)
		_, err = n.VerifyImage(t.Context(), connect.NewRequest(&bloomeryv1.VerifyImageRequest{Name: "debian-12"}))
		wantReason(t, name+" verifies", err, keyRevoked)
		_, err = n.GetImage(t.Context(), connect.NewRequest(&bloomeryv1.GetImageRequest{Name: "debian-12"}))
		wantReason(t, name+" shows", err, keyRevoked)
		if image := r.list(n)[0]; !image.GetKeyRevoked() || len(image.GetCopies())+len(image.GetMissing()) > 0 {
			t.Errorf("%s lists %v, want no copies of a revoked one", name, image)
		}
		for _, file := range []string{"data", images.ManifestFile, images.SignatureFile} {
			if status := r.get(n, "/images/debian-12/"+file); status != http.StatusForbidden {
				t.Errorf("%s of %s: status %d", file, name, status)
			}
		}
		if missing, err := n.missing(t); err != nil || missing != 0 {
			t.Errorf("%s misses %d images, %v; a revoked one is not missing", name, missing, err)
		}
		manifest, signature, _ := r.image("debian-13", 1<<20)
		_, err = n.Images.Begin(t.Context(), "debian-13", manifest, signature)
		wantReason(t, name+" adds another one", imageError(err), keyRevoked)
	}

	// The same name by the next key.
	r.private = private
	r.add(c2, "debian-12", 2<<20)
	r.eventually(c1, map[string][]string{"debian-12": {"c1", "c2"}})
	if err := c1.soundImage(t.Context(), "debian-12"); err != nil {
		t.Error(err)
	}
	if n := len(r.events(c1, "image.key_")); n != 3 {
		t.Errorf("%d events of keys, want import, addition and revocation", n)
	}
	if spoilt := r.events(c1, "image.spoilt"); len(spoilt) > 0 {
		t.Errorf("a revoked image is called spoilt: %v", spoilt)
	}
}

func (n *imageNode) missing(t *testing.T) (missing int, err error) {
	err = n.Store.View(t.Context(), func(s *store.Reader) error { missing, err = s.ImagesMissing(n.config.Node); return err })
	return missing, err
}

// TestRemoveRevokedImage must take the data too, which no list of usable images has.
func TestRemoveRevokedImage(t *testing.T) {
	r := newImageRack(t, "c1", "c2")
	c1 := r.nodes["c1"]
	r.add(c1, "debian-12", 1<<20)
	r.eventually(c1, map[string][]string{"debian-12": {"c1", "c2"}})
	public, _, err := images.GenerateKey()
	must(t, err)
	_, err = r.addKey(c1, public.String())
	must(t, err)
	must(t, r.revokeKey(c1, images.KeyID(r.public)))
	_, err = c1.RemoveImage(t.Context(), connect.NewRequest(&bloomeryv1.RemoveImageRequest{Name: "debian-12"}))
	must(t, err)
	for name, n := range r.nodes {
		until(t, name+" removes its copy", func() bool { return !n.Images.Has("debian-12") })
	}
}

func TestMayAddKey(t *testing.T) {
	row := func(id, fill byte) *bloomeryv1.ImageKey {
		raw := append([]byte{'E', 'd', id, 0, 0, 0, 0, 0, 0, 0}, slices.Repeat([]byte{fill}, 32)...)
		return &bloomeryv1.ImageKey{Id: string('A' + rune(id)), PublicKey: base64.StdEncoding.EncodeToString(raw)}
	}
	full := make([]*bloomeryv1.ImageKey, maxImageKeys)
	for i := range full {
		full[i] = row(byte(i), byte(i))
	}
	if err := mayAddKey(full[:3], row(9, 9)); err != nil {
		t.Error(err)
	}
	if err := mayAddKey(full[:3], row(9, 1)); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("a known key under another id: %v", err)
	}
	if err := mayAddKey(full[:3], row(1, 9)); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("another key under a known id: %v", err)
	}
	wantReason(t, "one too many", mayAddKey(full, row(99, 99)), "TOO_MANY")
}
