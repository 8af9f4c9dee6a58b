package system

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition/layout"
)

// clevisSlot is the key slot of the TPM's passphrase, a fixed one, so that what an interrupted run left there is found. LUKS2 has 32.
const clevisSlot = 16

// bindVolumes gives each volume that the TPM opens a key slot whose passphrase only this TPM gives back, and a token by which clevis in the
// initial RAM filesystem finds that. The slot of the generated key stays: nobody has that key once the job has ended.
func bindVolumes(ctx context.Context, o Options) (err error) {
	var volumes []layout.LUKSPlan
	for _, v := range o.Plan.LUKS {
		if slices.Contains(v.Unlock, layout.UnlockTPM2) {
			volumes = append(volumes, v)
		}
	}
	if len(volumes) == 0 {
		return nil
	}
	if o.OpenTPM == nil || o.Device == nil || o.Runner == nil {
		return fmt.Errorf("volume %s is opened by the TPM: the machine has none, or its devices and tools are not given", volumes[0].Name)
	}
	t, err := o.OpenTPM()
	if err != nil {
		return fmt.Errorf("open the TPM: %w", err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	for _, v := range volumes {
		if err := bindVolume(ctx, o, t, v); err != nil {
			return fmt.Errorf("bind volume %s to the TPM: %w", v.Name, err)
		}
	}
	return nil
}

func bindVolume(ctx context.Context, o Options, t transport.TPM, v layout.LUKSPlan) error {
	key, err := generatedKey(o, v)
	if err != nil {
		return err
	}
	dev, err := o.Device(v.Device)
	if err != nil {
		return err
	}
	// cryptsetup keeps its locks there.
	if err := os.MkdirAll("/run/cryptsetup", 0o700); err != nil {
		return err
	}
	c := crypt{runner: o.Runner, dev: dev}
	header, err := c.header(ctx)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(header.Tokens)) {
		bound := header.Tokens[id]
		if bound.Type != clevisToken {
			continue
		}
		if c.opensBy(ctx, t, bound) {
			return nil
		}
		if err := c.removeToken(ctx, id); err != nil {
			return err
		}
	}
	if _, used := header.Keyslots[decimal(clevisSlot)]; used {
		if err := c.killSlot(ctx, key); err != nil {
			return err
		}
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	// Text, since it goes through shell variables of clevis.
	passphrase := []byte(encode(random))
	bound, err := clevisSeal(t, passphrase, clevisSlot)
	if err != nil {
		return err
	}
	if err := c.addKey(ctx, key, passphrase); err != nil {
		return err
	}
	if err := c.importToken(ctx, bound); err != nil {
		return err
	}
	if !c.opensBy(ctx, t, bound) {
		return errors.New("what the TPM gives back does not open it")
	}
	return nil
}

// crypt is a LUKS2 volume's device, worked on by cryptsetup.
type crypt struct {
	runner run.Runner
	dev    string
}

// luksHeader is what is needed of the JSON area (LUKS2 On-Disk Format Specification 1.1.1, section 3).
type luksHeader struct {
	Keyslots map[string]json.RawMessage `json:"keyslots"`
	Tokens   map[string]token           `json:"tokens"`
}

func (c crypt) header(ctx context.Context) (luksHeader, error) {
	var h luksHeader
	text, err := run.Output(ctx, c.runner, []string{"cryptsetup", "luksDump", "--dump-json-metadata", c.dev})
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return h, fmt.Errorf("read the LUKS2 header of %s: %w", c.dev, err)
	}
	return h, nil
}

// opensBy says whether the passphrase that the TPM gives for a token opens the volume.
func (c crypt) opensBy(ctx context.Context, t transport.TPM, bound token) bool {
	passphrase, err := clevisOpen(t, bound)
	if err != nil {
		return false // another TPM's, or none that can be read: it is made anew
	}
	argv := []string{"cryptsetup", "open", "--type", "luks2", "--test-passphrase", "--key-file", "-", c.dev}
	_, err = run.Output(ctx, c.runner, argv, run.Stdin(bytes.NewReader(passphrase)))
	return err == nil
}

func (c crypt) removeToken(ctx context.Context, id string) error {
	_, err := run.Output(ctx, c.runner, []string{"cryptsetup", "token", "remove", "--token-id", id, c.dev})
	return err
}

func (c crypt) importToken(ctx context.Context, bound token) error {
	text, err := json.Marshal(bound)
	if err != nil {
		return err
	}
	_, err = run.Output(ctx, c.runner, []string{"cryptsetup", "token", "import", "--json-file", "-", c.dev}, run.Stdin(bytes.NewReader(text)))
	return err
}

func (c crypt) killSlot(ctx context.Context, key []byte) error {
	argv := []string{"cryptsetup", "luksKillSlot", "--batch-mode", "--key-file", "-", c.dev, decimal(clevisSlot)}
	_, err := run.Output(ctx, c.runner, argv, run.Stdin(bytes.NewReader(key)))
	return err
}

// addKey makes the slot. The volume's key comes through memory that has no name, the new one through the standard input. 256 random bits
// cannot be guessed however cheap a guess is, so that the boot need not wait for a costly derivation.
func (c crypt) addKey(ctx context.Context, key, passphrase []byte) error {
	fd, err := unix.MemfdCreate("key", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make room for a key: %w", err)
	}
	f := os.NewFile(uintptr(fd), "key")
	defer f.Close()
	if _, err := f.Write(key); err != nil {
		return fmt.Errorf("pass a key: %w", err)
	}
	argv := []string{
		"cryptsetup", "luksAddKey", "--batch-mode", "--type", "luks2", "--key-slot", decimal(clevisSlot),
		"--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000",
		"--key-file", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), c.dev, "-",
	}
	_, err = run.Output(ctx, c.runner, argv, run.Stdin(bytes.NewReader(passphrase)))
	return err
}
