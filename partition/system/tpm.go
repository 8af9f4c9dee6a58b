package system

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// sealed is a secret that one TPM alone gives back: TPM2B_PUBLIC and TPM2B_PRIVATE as they go over the wire.
type sealed struct{ public, private []byte }

// primaryTemplate is what `tpm2_createprimary -C o -g sha256 -G ecc` makes, since clevis makes the key anew with that at each boot. The TPM derives
// it from its own seed, the same one each time.
func primaryTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, Decrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

// withPrimary calls use with the storage key in the TPM.
func withPrimary(t transport.TPM, use func(parent tpm2.AuthHandle) error) (err error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(primaryTemplate())}.Execute(t)
	if err != nil {
		return fmt.Errorf("make the TPM's storage key: %w", err)
	}
	defer func() { err = errors.Join(err, flush(t, made.ObjectHandle)) }()
	return use(tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth(nil)})
}

func flush(t transport.TPM, handle tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(t); err != nil {
		return fmt.Errorf("flush the TPM's key: %w", err)
	}
	return nil
}

// seal has the TPM guard a secret of at most 128 bytes.
func seal(t transport.TPM, secret []byte) (s sealed, err error) {
	err = withPrimary(t, func(parent tpm2.AuthHandle) error {
		made, err := tpm2.Create{
			ParentHandle: parent,
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				// Without a policy over PCRs whoever uses this machine's TPM may unseal: see docs/security.md.
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, AdminWithPolicy: true, NoDA: true},
			}),
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("seal a key in the TPM: %w", err)
		}
		s = sealed{public: tpm2.Marshal(made.OutPublic), private: tpm2.Marshal(made.OutPrivate)}
		return nil
	})
	return s, err
}

// unseal gives a secret back.
func unseal(t transport.TPM, s sealed) (secret []byte, err error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](s.public)
	if err != nil {
		return nil, fmt.Errorf("read a sealed key: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](s.private)
	if err != nil {
		return nil, fmt.Errorf("read a sealed key: %w", err)
	}
	err = withPrimary(t, func(parent tpm2.AuthHandle) (err error) {
		loaded, err := tpm2.Load{ParentHandle: parent, InPublic: *public, InPrivate: *private}.Execute(t)
		if err != nil {
			return fmt.Errorf("load a sealed key into the TPM: %w", err)
		}
		defer func() { err = errors.Join(err, flush(t, loaded.ObjectHandle)) }()
		given, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth(nil)}}.Execute(t)
		if err != nil {
			return fmt.Errorf("unseal a key in the TPM: %w", err)
		}
		secret = given.OutData.Buffer
		return nil
	})
	return secret, err
}
