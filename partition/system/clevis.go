package system

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2/transport"
)

// What clevis of the installed system reads (its pin tpm2, and its LUKS2 tokens): a JWE (RFC 7516) whose plaintext is the volume's passphrase, made
// with a key that is a JWK (RFC 7517) in the TPM.

const clevisToken = "clevis"

// token is a LUKS2 token (LUKS2 On-Disk Format Specification 1.1.1, section 3.5) of clevis.
type token struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
	JWE      jwe      `json:"jwe"`
}

// jwe is in the flattened JSON form (RFC 7516, section 7.2.2), its values base64url.
type jwe struct {
	Ciphertext   string `json:"ciphertext"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Protected    string `json:"protected"`
	Tag          string `json:"tag"`
}

type jweHeader struct {
	Algorithm  string       `json:"alg"`
	Encryption string       `json:"enc"`
	Clevis     clevisHeader `json:"clevis"`
}

type clevisHeader struct {
	Pin  string  `json:"pin"`
	TPM2 tpm2Pin `json:"tpm2"`
}

type tpm2Pin struct {
	Hash    string `json:"hash"`
	Key     string `json:"key"`
	Public  string `json:"jwk_pub"`
	Private string `json:"jwk_priv"`
}

type jwk struct {
	Algorithm string   `json:"alg"`
	Key       string   `json:"k"`
	Uses      []string `json:"key_ops"`
	Type      string   `json:"kty"`
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// newAEAD is A256GCM (RFC 7518, section 5.3).
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// clevisSeal binds a passphrase to the TPM.
func clevisSeal(t transport.TPM, passphrase []byte, slot int) (token, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	text, err := json.Marshal(jwk{Algorithm: "A256GCM", Key: encode(key), Uses: []string{"encrypt", "decrypt"}, Type: "oct"})
	if err != nil {
		return token{}, err
	}
	guarded, err := seal(t, text)
	if err != nil {
		return token{}, err
	}
	header, err := json.Marshal(jweHeader{Algorithm: "dir", Encryption: "A256GCM", Clevis: clevisHeader{Pin: "tpm2", TPM2: tpm2Pin{
		Hash: "sha256", Key: "ecc", Public: encode(guarded.public), Private: encode(guarded.private),
	}}})
	if err != nil {
		return token{}, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return token{}, err
	}
	iv := make([]byte, aead.NonceSize())
	_, _ = rand.Read(iv) // never fails
	protected := encode(header)
	out := aead.Seal(nil, iv, passphrase, []byte(protected))
	cut := len(out) - aead.Overhead()
	return token{Type: clevisToken, Keyslots: []string{decimal(slot)}, JWE: jwe{
		Ciphertext: encode(out[:cut]), IV: encode(iv), Protected: protected, Tag: encode(out[cut:]),
	}}, nil
}

// clevisOpen gives the passphrase of a token as the installed system will get it.
func clevisOpen(t transport.TPM, bound token) ([]byte, error) {
	values := map[string][]byte{"protected": nil, "iv": nil, "ciphertext": nil, "tag": nil}
	for name, text := range map[string]string{"protected": bound.JWE.Protected, "iv": bound.JWE.IV, "ciphertext": bound.JWE.Ciphertext, "tag": bound.JWE.Tag} {
		value, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("read a clevis token's %s: %w", name, err)
		}
		values[name] = value
	}
	var header jweHeader
	if err := json.Unmarshal(values["protected"], &header); err != nil {
		return nil, fmt.Errorf("read a clevis token's header: %w", err)
	}
	if header.Clevis.Pin != "tpm2" || header.Encryption != "A256GCM" || header.Algorithm != "dir" {
		return nil, errors.New("read a clevis token's header: it is none of the TPM's")
	}
	public, err := base64.RawURLEncoding.DecodeString(header.Clevis.TPM2.Public)
	if err != nil {
		return nil, fmt.Errorf("read a clevis token's jwk_pub: %w", err)
	}
	private, err := base64.RawURLEncoding.DecodeString(header.Clevis.TPM2.Private)
	if err != nil {
		return nil, fmt.Errorf("read a clevis token's jwk_priv: %w", err)
	}
	text, err := unseal(t, sealed{public: public, private: private})
	if err != nil {
		return nil, err
	}
	var key jwk
	if err := json.Unmarshal(text, &key); err != nil {
		return nil, errors.New("read the key from the TPM: it is no JWK") // the error would hold a part of it
	}
	secret, err := base64.RawURLEncoding.DecodeString(key.Key)
	if err != nil {
		return nil, errors.New("read the key from the TPM: it is not base64url")
	}
	aead, err := newAEAD(secret)
	if err != nil {
		return nil, err
	}
	if len(values["iv"]) != aead.NonceSize() {
		return nil, errors.New("read a clevis token's iv: it has the wrong length")
	}
	return aead.Open(nil, values["iv"], append(values["ciphertext"], values["tag"]...), []byte(bound.JWE.Protected))
}
