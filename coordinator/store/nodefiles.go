package store

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// Files of a node beside dqlite's own, in the form that go-dqlite's app package gives them.
const (
	// infoFile says who this node is, peersFile whom it saw as the members.
	infoFile  = "info.yaml"
	peersFile = "cluster.yaml"
	// joinFile is there until the node is a member.
	joinFile = "join"
)

// loneAddress is the address of a node that no other can reach.
const loneAddress = "coordinator-1"

// nodeRecord is a node as the files have it.
type nodeRecord struct {
	ID      uint64 `yaml:"ID"`
	Address string `yaml:"Address"`
	Role    Role   `yaml:"Role"`
}

// nodeFiles are the files of a node's directory.
type nodeFiles struct{ dir string }

func (f nodeFiles) path(name string) string { return filepath.Join(f.dir, name) }

func (f nodeFiles) has(name string) (bool, error) {
	_, err := os.Lstat(f.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// info reads who this node is; ok is false when the directory is new.
func (f nodeFiles) info() (r nodeRecord, ok bool, err error) {
	data, err := os.ReadFile(f.path(infoFile))
	if errors.Is(err, fs.ErrNotExist) {
		// Without info.yaml the data of a node is nobody's; starting anew would hide it.
		left, err := filepath.Glob(f.path("metadata*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%s is missing, but %s is there: the database is damaged", f.path(infoFile), left[0])
		}
		return r, false, err
	}
	if err != nil {
		return r, false, err
	}
	if err := yaml.Unmarshal(data, &r); err != nil || r.ID == 0 || checkNodeAddress(r.Address) != nil {
		return r, false, fmt.Errorf("%s is corrupt: want a node's ID and address", f.path(infoFile))
	}
	return r, true, nil
}

func checkNodeAddress(address string) error {
	if address == loneAddress {
		return nil
	}
	a, err := netip.ParseAddrPort(address)
	if err == nil && (a.Port() == 0 || a.Addr().IsUnspecified()) {
		err = errors.New("no address that others can dial")
	}
	if err != nil {
		return fmt.Errorf("address of a database node %q: %w", address, err)
	}
	return nil
}

// peers reads whom the node knows; none when the file is not there.
func (f nodeFiles) peers() ([]Member, error) {
	data, err := os.ReadFile(f.path(peersFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var records []nodeRecord
	err = yaml.Unmarshal(data, &records)
	var all []Member
	for _, r := range records {
		err = errors.Join(err, checkNodeAddress(r.Address))
		all = append(all, Member(r))
	}
	if err != nil || len(all) == 0 {
		return nil, fmt.Errorf("%s is corrupt: want a list of database nodes; when it is removed, it is made again", f.path(peersFile))
	}
	return all, nil
}

func (f nodeFiles) writePeers(all []Member) error {
	var records []nodeRecord
	for _, m := range all {
		records = append(records, nodeRecord(m))
	}
	return f.write(peersFile, records)
}

func (f nodeFiles) writeInfo(r nodeRecord) error { return f.write(infoFile, r) }

// write replaces a file so that it is whole whenever the power fails.
func (f nodeFiles) write(name string, value any) error {
	data, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return writeWhole(f.path(name), data, 0o600)
}

// writeWhole writes a file under another name, flushes it, renames it and flushes the directory.
func writeWhole(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp.Name())))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
