package images

import (
	"errors"
	"fmt"
	"slices"

	"aead.dev/minisign"
)

// ErrRevoked says that an image is signed by a key that is trusted no more.
var ErrRevoked = errors.New("the key that has signed the image was revoked")

// storeKeys are the keys that a store goes by. They are replaced as a whole.
type storeKeys struct{ trusted, revoked []PublicKey }

// SetKeys replaces the keys that images may be signed by. What the others have signed is neither returned nor served nor accepted from now on; of
// what a revoked one has signed the errors say so: they are ErrRevoked.
func (s *Store) SetKeys(trusted, revoked []PublicKey) {
	s.keys.Store(&storeKeys{slices.Clone(trusted), slices.Clone(revoked)})
}

// Keys are those that images may be signed by.
func (s *Store) Keys() []PublicKey { return slices.Clone(s.keys.Load().trusted) }

// KeyID names a key as minisign does: 16 hexadecimal digits, upper case.
func KeyID(key PublicKey) string { return keyID(key.ID()) }

func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// SignedBy is the id of the key that a signature claims to be by; empty when it cannot be read.
func SignedBy(signature []byte) string {
	var parsed minisign.Signature
	if len(signature) > MaxSignatureSize || parsed.UnmarshalText(signature) != nil {
		return ""
	}
	return keyID(parsed.KeyID)
}

// manifest verifies a manifest's signature by the keys of now.
func (s *Store) manifest(manifest, signature []byte) (*Manifest, error) {
	keys := s.keys.Load()
	if err := keys.allow(signature); errors.Is(err, ErrRevoked) {
		return nil, err
	}
	return VerifyManifest(manifest, signature, keys.trusted...)
}

// allow says whether the key that a signature claims to be by is a trusted one. It does not verify the signature.
func (k *storeKeys) allow(signature []byte) error {
	id := SignedBy(signature)
	is := func(key PublicKey) bool { return KeyID(key) == id }
	switch {
	case slices.ContainsFunc(k.trusted, is):
		return nil
	case slices.ContainsFunc(k.revoked, is):
		return fmt.Errorf("key %s: %w", id, ErrRevoked)
	}
	return fmt.Errorf("signature is by key %q, which is not known: %w", id, ErrSignature)
}

// servable reads an image's small files if a trusted key has signed it. The data was verified when it came, and whoever reads it verifies it again.
func (s *Store) servable(name string) (manifest, signature []byte, err error) {
	manifest, signature, err = s.readFiles(name)
	if err == nil {
		err = s.keys.Load().allow(signature)
	}
	return manifest, signature, err
}

// Has says whether a folder of that name is there, whatever is in it.
func (s *Store) Has(name string) bool {
	if ValidateName(name) != nil {
		return false
	}
	info, err := s.root.Lstat(name)
	return err == nil && info.IsDir()
}
