package cloudinit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// SeedDir is where cloud-init looks for a seed, below the root of the installed filesystem.
const SeedDir = "var/lib/cloud/seed/nocloud"

const (
	seedParent  = "var/lib/cloud/seed"
	stagingName = seedParent + "/.nocloud.new"
	maxSeedFile = 1 << 20
)

// WriteSeed puts the seed into the filesystem that is mounted at root, replacing any seed of the image's. The files (0600) appear together,
// in a directory of mode 0700, and are on the disk when WriteSeed returns. The image is not trusted: a symbolic link in it that leads out of
// root is an error.
func WriteSeed(root string, seed NoCloud) error {
	if len(seed.MetaData) == 0 {
		return errors.New("write seed: meta-data is empty: cloud-init would not take the seed")
	}
	for name, content := range seed.files() {
		if len(content) > maxSeedFile {
			return fmt.Errorf("write seed: %s has %d bytes, at most %d are allowed", name, len(content), maxSeedFile)
		}
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("write seed: %w", err)
	}
	defer r.Close()
	if err := writeSeed(r, seed); err != nil {
		return fmt.Errorf("write seed below %s: %w", root, err)
	}
	return nil
}

// files maps the names of the seed's files to their contents; user-data stands there even when it is empty, since cloud-init wants it.
func (s NoCloud) files() map[string][]byte {
	files := map[string][]byte{"meta-data": s.MetaData, "user-data": s.UserData}
	if len(s.VendorData) > 0 {
		files["vendor-data"] = s.VendorData
	}
	if len(s.NetworkConfig) > 0 {
		files["network-config"] = s.NetworkConfig
	}
	return files
}

func writeSeed(r *os.Root, seed NoCloud) error {
	if err := r.MkdirAll(seedParent, 0o755); err != nil {
		return err
	}
	if err := r.RemoveAll(stagingName); err != nil {
		return err
	}
	if err := r.Mkdir(stagingName, 0o700); err != nil {
		return err
	}
	staging, err := r.OpenRoot(stagingName)
	if err != nil {
		return err
	}
	defer staging.Close()
	for name, content := range seed.files() {
		if err := writeSynced(staging, name, content); err != nil {
			return err
		}
	}
	if err := syncDir(staging, "."); err != nil {
		return err
	}
	if err := r.RemoveAll(SeedDir); err != nil {
		return err
	}
	if err := r.Rename(stagingName, SeedDir); err != nil {
		return err
	}
	for _, dir := range []string{seedParent, "var/lib/cloud", "var/lib"} {
		if err := syncDir(r, dir); err != nil {
			return err
		}
	}
	return nil
}

func writeSynced(r *os.Root, name string, content []byte) error {
	f, err := r.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o600))
	if err != nil {
		return err
	}
	_, writeErr := f.Write(content)
	return errors.Join(writeErr, f.Sync(), f.Close())
}

func syncDir(r *os.Root, name string) error {
	d, err := r.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
