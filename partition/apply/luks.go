package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition/layout"
)

// argonMemory in KiB is what each opening of a passphrase costs. cryptsetup would take up to 1 GiB by what the machine has, and then neither
// a machine of 512 MiB nor its rescue system could open the volume.
const argonMemory = 64 << 10

// ensureLUKS makes a volume open: one that each of its secrets opens is kept, any other is made, if create says so.
func (m *Machine) ensureLUKS(ctx context.Context, p *layout.Plan, v layout.LUKSPlan, create bool) error {
	keys, err := m.keys(v)
	if err != nil {
		return err
	}
	_, err = m.mapped(v.Name, cryptUUID(v))
	active := err == nil
	if err != nil && !errors.Is(err, ErrNotMade) {
		return err
	}
	if active && !create {
		return nil
	}
	dev, err := m.Device(ctx, p, v.Device)
	if err != nil {
		return err
	}
	opening, err := m.opening(ctx, dev, v, keys)
	if err != nil {
		return err
	}
	// Later steps may take a key away again, one that went into a TPM only for the volume to be opened here.
	sound := len(opening) == len(keys) || len(opening) > 0 && !create
	switch {
	case sound && active:
		return nil
	case sound:
		return m.openLUKS(ctx, dev, v, opening[0])
	case !create:
		return fmt.Errorf("volume %s on %s: %w", v.Name, dev, ErrNotMade)
	}
	return m.createLUKS(ctx, p, v, keys)
}

// key is a secret of a volume and what guards its key slot.
type key struct {
	name       string
	data       []byte
	passphrase bool
}

// keys are the volume's secrets, the generated one first. Key file and TPM are two places for one and the same key.
func (m *Machine) keys(v layout.LUKSPlan) ([]key, error) {
	var keys []key
	for _, unlock := range v.Unlock {
		k := key{name: "luks/" + v.Name}
		if unlock == layout.UnlockPassphrase {
			k = key{name: v.Secret, passphrase: true}
		}
		if slices.ContainsFunc(keys, func(have key) bool { return have.name == k.name }) {
			continue
		}
		k.data = m.Secrets[k.name]
		if len(k.data) == 0 {
			return nil, fmt.Errorf("volume %s needs the secret %q, which the job has not", v.Name, k.name)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("volume %s has no way to open it", v.Name)
	}
	slices.SortStableFunc(keys, func(a, b key) int {
		switch {
		case a.passphrase == b.passphrase:
			return 0
		case a.passphrase:
			return 1
		}
		return -1
	})
	return keys, nil
}

// opening are those of the keys that open the planned volume; none if dev is not it.
func (m *Machine) opening(ctx context.Context, dev string, v layout.LUKSPlan, keys []key) ([]key, error) {
	result, err := m.answer(ctx, []string{"cryptsetup", "luksUUID", "--type", "luks2", dev})
	if err != nil {
		return nil, fmt.Errorf("read the LUKS header of %s: %w", dev, err)
	}
	if result.ExitCode != 0 || !sameUUID(string(bytes.TrimSpace(result.Stdout)), v.UUID) {
		return nil, nil
	}
	var fit []key
	for _, k := range keys {
		argv := []string{"cryptsetup", "open", "--type", "luks2", "--test-passphrase", "--key-file", "-", dev}
		result, err := m.answer(ctx, argv, run.Stdin(bytes.NewReader(k.data)))
		if err != nil {
			return nil, fmt.Errorf("try to open %s: %w", dev, err)
		}
		if result.ExitCode == 0 {
			fit = append(fit, k)
		}
	}
	return fit, nil
}

func (m *Machine) openLUKS(ctx context.Context, dev string, v layout.LUKSPlan, k key) error {
	// cryptsetup keeps its locks there.
	if err := os.MkdirAll("/run/cryptsetup", 0o700); err != nil {
		return fmt.Errorf("open %s: %w", dev, err)
	}
	argv := []string{"cryptsetup", "open", "--type", "luks2", "--key-file", "-", dev, v.Name}
	if _, err := m.tool(ctx, argv, run.Stdin(bytes.NewReader(k.data))); err != nil {
		return fmt.Errorf("open %s as %s: %w", dev, v.Name, err)
	}
	return nil
}

func (m *Machine) createLUKS(ctx context.Context, p *layout.Plan, v layout.LUKSPlan, keys []key) error {
	dev, err := m.Device(ctx, p, v.Device)
	if err != nil {
		return err
	}
	if err := m.release(ctx, dev); err != nil {
		return err
	}
	if err := m.blank(ctx, dev); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/cryptsetup", 0o700); err != nil {
		return err
	}
	if _, err := m.tool(ctx, formatLUKSArgv(v, keys[0], dev), run.Stdin(bytes.NewReader(keys[0].data))); err != nil {
		return err
	}
	for _, k := range keys[1:] {
		if err := m.addKey(ctx, dev, keys[0], k); err != nil {
			return err
		}
	}
	if err := m.openLUKS(ctx, dev, v, keys[0]); err != nil {
		return err
	}
	opened, err := m.mapped(v.Name, cryptUUID(v))
	if err != nil {
		return fmt.Errorf("find volume %s after it was opened: %w", v.Name, err)
	}
	// What was on the disk is now other noise, which may look like something.
	return m.blank(ctx, opened)
}

func formatLUKSArgv(v layout.LUKSPlan, k key, dev string) []string {
	argv := []string{
		"cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", v.UUID, "--cipher", "aes-xts-plain64", "--key-size", "512",
		"--sector-size", strconv.Itoa(v.SectorSize),
	}
	argv = append(argv, keyDerivation(k)...)
	if v.Label != "" {
		argv = append(argv, "--label", v.Label)
	}
	return append(argv, "--key-file", "-", dev)
}

// keyDerivation makes guessing a passphrase dear. A key of 64 random bytes cannot be guessed however cheap a guess is, and a boot need not wait.
func keyDerivation(k key) []string {
	if !k.passphrase {
		return []string{"--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1000"}
	}
	return []string{"--pbkdf", "argon2id", "--pbkdf-memory", strconv.Itoa(argonMemory), "--pbkdf-parallel", "1", "--hash", "sha512"}
}

// addKey gives a volume another key slot. One of the two keys comes through the standard input, the other through memory that has no name.
func (m *Machine) addKey(ctx context.Context, dev string, have, add key) error {
	fd, err := unix.MemfdCreate("key", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make room for a key: %w", err)
	}
	f := os.NewFile(uintptr(fd), "key")
	defer f.Close()
	if _, err := f.Write(have.data); err != nil {
		return fmt.Errorf("pass a key: %w", err)
	}
	argv := addKeyArgv(dev, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), add)
	if _, err := m.tool(ctx, argv, run.Stdin(bytes.NewReader(add.data))); err != nil {
		return fmt.Errorf("add the key %s: %w", add.name, err)
	}
	return nil
}

func addKeyArgv(dev, keyFile string, add key) []string {
	argv := []string{"cryptsetup", "luksAddKey", "--batch-mode", "--type", "luks2", "--key-file", keyFile}
	return append(append(argv, keyDerivation(add)...), dev, "-")
}

// cryptUUID is how cryptsetup marks the opened volume for the device mapper.
func cryptUUID(v layout.LUKSPlan) string {
	return "CRYPT-LUKS2-" + plainUUID(v.UUID) + "-"
}
