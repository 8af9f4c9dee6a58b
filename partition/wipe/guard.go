package wipe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

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

// loaderVariable holds the partition that the boot loader, or the agent's own image, was started from; there is none after a start over the
// network (systemd's Boot Loader Interface).
const loaderVariable = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// checkBootMedium refuses the disk that the running system was started from, named or not.
func checkBootMedium(disks partition.Disks, dev, efivars string) error {
	data, err := os.ReadFile(filepath.Join(efivars, loaderVariable))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the boot medium: %w", err)
	}
	guid := loaderPartition(data)
	if guid == "" {
		return nil
	}
	b, err := disks.Open(dev, false)
	if err != nil {
		return err
	}
	defer b.Close()
	for _, own := range partition.PartitionGUIDs(b, b.Size(), b.SectorSize()) {
		if own == guid {
			return fmt.Errorf("%w: this machine was started from its partition %s", ErrRefused, guid)
		}
	}
	return nil
}

// loaderPartition reads the variable: four bytes of attributes, then UTF-16 text up to a zero; "" if it is no GUID.
func loaderPartition(data []byte) string {
	if len(data) < 4 || len(data) > 4096 {
		return ""
	}
	var units []uint16
	for data = data[4:]; len(data) >= 2; data = data[2:] {
		unit := binary.LittleEndian.Uint16(data)
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	guid := strings.ToLower(string(utf16.Decode(units)))
	if len(guid) != 36 {
		return ""
	}
	return guid
}
