package store

import (
	"errors"
	"fmt"
	"os"
)

// recoveredFile is there from a recovery until the coordinators' list was put right.
const recoveredFile = "recovered"

// Offline is what a database's directory says while no program runs on it.
type Offline struct {
	Self     Member
	Members  []Member
	Position LogPosition
}

// ReadOffline looks at a database that no program has open.
func ReadOffline(dir string) (o Offline, err error) {
	if _, err := os.Stat(dir); err != nil {
		return o, fmt.Errorf("look at the database: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return readOffline(dir)
}

func readOffline(dir string) (o Offline, err error) {
	files := nodeFiles{dir}
	info, ok, err := files.info()
	if err == nil && !ok {
		err = fmt.Errorf("%s holds no database", dir)
	}
	if err != nil {
		return o, err
	}
	o.Self = Member(info)
	if o.Members, err = files.peers(); err != nil {
		return o, err
	}
	o.Position, err = positionIn(dir)
	return o, err
}

// Recover makes this node the only one of its database, with what it has: whatever a majority had acknowledged and did not reach this
// node's disk is lost, and the other nodes' data must never come back.
func Recover(dir string) (o Offline, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	files := nodeFiles{dir}
	joining, err := files.has(joinFile)
	if err == nil && joining {
		err = fmt.Errorf("this node never joined: it has no data")
	}
	if err != nil {
		return o, err
	}
	if o, err = readOffline(dir); err != nil {
		return o, err
	}
	if err := writeWhole(files.path(recoveredFile), nil, 0o600); err != nil {
		return o, err
	}
	return o, forceMembers(files, o.Self)
}

// Recovered says that this database was recovered and its list of coordinators still names the others.
func (s *Store) Recovered() (bool, error) { return nodeFiles{s.dir}.has(recoveredFile) }

// ForgetRecovery notes that the list of coordinators is right.
func (s *Store) ForgetRecovery() error {
	if err := os.Remove(nodeFiles{s.dir}.path(recoveredFile)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
