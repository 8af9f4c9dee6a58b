package images

import (
	"errors"
	"fmt"
	"io"
	"os"

	"aead.dev/minisign"
)

// PublicKey and PrivateKey are minisign's Ed25519 keys.
type (
	PublicKey  = minisign.PublicKey
	PrivateKey = minisign.PrivateKey
)

// ErrSignature says that no known key has signed a manifest, or that the signature is one of something else.
var ErrSignature = errors.New("image signature is not valid")

const (
	maxKeyFileSize       = 4 << 10
	trustedCommentPrefix = "bloomery image "
)

// GenerateKey makes a key pair from the system's random numbers.
func GenerateKey() (PublicKey, PrivateKey, error) {
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		return PublicKey{}, PrivateKey{}, fmt.Errorf("generating image signing key: %w", err)
	}
	return public, private, nil
}

// GenerateKeyFiles makes a key pair and writes it to two new files, the private one unencrypted with mode 0600. It never replaces a file.
func GenerateKeyFiles(privatePath, publicPath string) (PublicKey, error) {
	public, private, err := GenerateKey()
	if err != nil {
		return PublicKey{}, err
	}
	privateText, err := private.MarshalText()
	if err != nil {
		return PublicKey{}, fmt.Errorf("encoding image signing key: %w", err)
	}
	publicText, err := public.MarshalText()
	if err != nil {
		return PublicKey{}, fmt.Errorf("encoding image public key: %w", err)
	}
	if err := writeNewFile(privatePath, append(privateText, '\n'), 0o600); err != nil {
		return PublicKey{}, fmt.Errorf("writing image signing key: %w", err)
	}
	if err := writeNewFile(publicPath, append(publicText, '\n'), 0o644); err != nil {
		return PublicKey{}, errors.Join(fmt.Errorf("writing image public key: %w", err), os.Remove(privatePath))
	}
	return public, nil
}

// LoadPublicKey reads a minisign public key file.
func LoadPublicKey(path string) (PublicKey, error) {
	text, err := readLimited(path, maxKeyFileSize)
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading image public key: %w", err)
	}
	var key PublicKey
	if err := key.UnmarshalText(text); err != nil {
		return PublicKey{}, fmt.Errorf("reading image public key %s: %w", path, err)
	}
	return key, nil
}

// LoadPrivateKey reads a minisign private key file, encrypted or not; the password of an unencrypted one is ignored.
func LoadPrivateKey(path, password string) (PrivateKey, error) {
	text, err := readLimited(path, maxKeyFileSize)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("reading image signing key: %w", err)
	}
	if minisign.IsEncrypted(text) {
		key, err := minisign.DecryptKey(password, text)
		if err != nil {
			return PrivateKey{}, fmt.Errorf("decrypting image signing key %s: %w", path, err)
		}
		return key, nil
	}
	var key PrivateKey
	if err := key.UnmarshalText(text); err != nil {
		return PrivateKey{}, fmt.Errorf("reading image signing key %s: %w", path, err)
	}
	return key, nil
}

// Sign returns the minisign signature of a manifest's bytes. Its trusted comment names the image, so that one image's
// signature cannot stand for another's even where only names are shown.
func Sign(manifest []byte, key PrivateKey) ([]byte, error) {
	m, err := DecodeManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("signing image: %w", err)
	}
	return minisign.SignWithComments(key, manifest, trustedComment(m), "signature of a bloomery image manifest"), nil
}

// VerifyManifest checks a manifest's signature against the keys and then decodes it; bytes that no key has signed are not parsed.
// An error of the signature is an ErrSignature.
func VerifyManifest(manifest, signature []byte, keys ...PublicKey) (*Manifest, error) {
	if len(manifest) > MaxManifestSize {
		return nil, fmt.Errorf("verifying image manifest: %d bytes are more than the limit of %d", len(manifest), MaxManifestSize)
	}
	if len(signature) > MaxSignatureSize {
		return nil, fmt.Errorf("verifying image manifest: a signature of %d bytes is over the limit of %d: %w", len(signature), MaxSignatureSize, ErrSignature)
	}
	var parsed minisign.Signature
	if err := parsed.UnmarshalText(signature); err != nil {
		return nil, fmt.Errorf("verifying image manifest: reading signature: %w: %w", err, ErrSignature)
	}
	if !signedByAny(manifest, signature, keys) {
		return nil, fmt.Errorf("verifying image manifest: none of the %d known keys has signed it (signature is by key %016X): %w", len(keys), parsed.KeyID, ErrSignature)
	}
	m, err := DecodeManifest(manifest)
	if err != nil {
		return nil, err
	}
	if parsed.TrustedComment != trustedComment(m) {
		return nil, fmt.Errorf("verifying image manifest: signature is of %.128q, want %q: %w", parsed.TrustedComment, trustedComment(m), ErrSignature)
	}
	return m, nil
}

func signedByAny(manifest, signature []byte, keys []PublicKey) bool {
	for _, key := range keys {
		if minisign.Verify(key, manifest, signature) {
			return true
		}
	}
	return false
}

func trustedComment(m *Manifest) string { return trustedCommentPrefix + m.Name }

func writeNewFile(path string, data []byte, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() // read only
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: it has more than %d bytes", path, limit)
	}
	return data, nil
}
