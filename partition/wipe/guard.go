package wipe

import (
	"errors"
	"fmt"

	"bloomery/partition"
)

// ErrRefused is wrapped when a disk must not be wiped, whatever is on it.
var ErrRefused = errors.New("disk is not to be wiped")

// Remote says that a disk of this transport is reached over a network: it may be anybody's.
func Remote(transport string) bool {
	switch transport {
	case "iscsi", "nvmeof", "fc":
		return true
	}
	return false
}

// check refuses what is not the machine's own, unless it was named.
func (t Target) check() error {
	switch {
	case t.ReadOnly:
		return fmt.Errorf("%w: it is read-only", ErrRefused)
	case t.Removable && !t.Named:
		return fmt.Errorf("%w: it is removable, and was not named", ErrRefused)
	case Remote(t.Transport) && !t.Named:
		return fmt.Errorf("%w: it is reached over a network (%s), and was not named", ErrRefused, t.Transport)
	}
	return nil
}

// checkBootMedium refuses the disk that the running system was started from, named or not.
func checkBootMedium(disks partition.Disks, dev string) error {
	err := disks.CheckNotBootMedium(dev)
	if errors.Is(err, partition.ErrBootMedium) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}
