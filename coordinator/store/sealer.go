package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
)

// sealer encrypts secrets at rest with AES-256-GCM; what it is bound to (a machine's name) must be given again to open it.
type sealer struct{ aead cipher.AEAD }

const secretSize = 32

// openSealer reads the key file or makes it.
func openSealer(path string) (*sealer, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key = make([]byte, secretSize)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make the store's secret: %w", err)
		}
		if err := writeSecret(path, key); err != nil {
			return nil, fmt.Errorf("write the store's secret: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("read the store's secret: %w", err)
	}
	if len(key) != secretSize {
		return nil, fmt.Errorf("store's secret %s: %d bytes, want %d", path, len(key), secretSize)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the store's secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("store's secret %s has mode %04o, want 0600", path, info.Mode().Perm())
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead: aead}, nil
}

func writeSecret(path string, key []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(key)
	return errors.Join(err, f.Sync(), f.Close())
}

func (s *sealer) seal(plain, boundTo string) ([]byte, error) {
	if plain == "" {
		return nil, nil
	}
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("make a nonce: %w", err)
	}
	return s.aead.Seal(nonce, nonce, []byte(plain), []byte(boundTo)), nil
}

func (s *sealer) open(sealed []byte, boundTo string) (string, error) {
	if len(sealed) == 0 {
		return "", nil
	}
	if len(sealed) < s.aead.NonceSize() {
		return "", errors.New("sealed secret is too short")
	}
	n := s.aead.NonceSize()
	plain, err := s.aead.Open(nil, sealed[:n], sealed[n:], []byte(boundTo))
	if err != nil {
		return "", fmt.Errorf("open a sealed secret: %w", err)
	}
	return string(plain), nil
}
