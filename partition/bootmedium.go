package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf16"
)

// ErrBootMedium is wrapped when a disk is the one that this system was started from.
var ErrBootMedium = errors.New("this system was started from the disk")

// startedFrom is where systemd's stub, which the agent's image begins with, says which GPT partition it was loaded from
// (systemd.io/BOOT_LOADER_INTERFACE). After a network boot it is not there. It lives until the next boot only.
const startedFrom = "firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// CheckNotBootMedium refuses the disk with ErrBootMedium if one of its partitions is the one that this system was started from.
func (d Disks) CheckNotBootMedium(dev string) error {
	data, err := os.ReadFile(filepath.Join(d.sysfs(), startedFrom))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find out what this system was started from: %w", err)
	}
	guid, err := parseStartedFrom(data)
	if err != nil {
		return fmt.Errorf("find out what this system was started from: %w", err)
	}
	table, err := ReadTable(dev)
	if errors.Is(err, ErrTable) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find out whether this system was started from %s: %w", dev, err)
	}
	for _, e := range table.Entries {
		if e.GUID == guid {
			return fmt.Errorf("%w: partition %d of %s is %s", ErrBootMedium, e.Number, dev, guid)
		}
	}
	return nil
}

// parseStartedFrom reads a variable of efivarfs: four bytes of attributes, then UTF-16 with a zero at its end.
func parseStartedFrom(data []byte) (string, error) {
	const most = 256
	if len(data) < 4 || len(data)%2 != 0 || len(data) > most {
		return "", fmt.Errorf("the firmware's variable has %d bytes", len(data))
	}
	var units []uint16
	for i := 4; i < len(data); i += 2 {
		units = append(units, binary.LittleEndian.Uint16(data[i:]))
	}
	guid := strings.ToLower(strings.TrimRight(string(utf16.Decode(units)), "\x00"))
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(guid) {
		return "", fmt.Errorf("%q is no GUID", guid)
	}
	return guid, nil
}
