package inventory

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoDisk and ErrAmbiguousDisk are wrapped by FindDisk's errors.
var (
	ErrNoDisk        = errors.New("no such disk")
	ErrAmbiguousDisk = errors.New("more than one such disk")
)

// Selector names a disk by what is printed on it. At least one field must be set; all that are set must match exactly.
type Selector struct {
	Serial string
	WWN    string
}

// String is the selector in words.
func (s Selector) String() string {
	var parts []string
	if s.Serial != "" {
		parts = append(parts, fmt.Sprintf("serial %q", s.Serial))
	}
	if s.WWN != "" {
		parts = append(parts, fmt.Sprintf("WWN %q", s.WWN))
	}
	return strings.Join(parts, " and ")
}

// FindDisk finds the one disk that fits; the errors list what is there. It never guesses: two disks of one serial are refused.
func FindDisk(disks []Disk, want Selector) (Disk, error) {
	if want == (Selector{}) {
		return Disk{}, errors.New("find a disk: serial or wwn must be given")
	}
	var found []Disk
	for _, d := range disks {
		if (want.Serial == "" || d.Serial == want.Serial) && (want.WWN == "" || d.WWN == want.WWN) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Disk{}, fmt.Errorf("find the disk with %s: %w; this machine has %s", want, ErrNoDisk, listDisks(disks))
	default:
		return Disk{}, fmt.Errorf("find the disk with %s: %w: %s; give serial and wwn", want, ErrAmbiguousDisk, listDisks(found))
	}
}

func listDisks(disks []Disk) string {
	const most = 32
	var parts []string
	for i, d := range disks {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(disks)-most))
			break
		}
		part := fmt.Sprintf("%s (serial %q", d.Name, d.Serial)
		if d.WWN != "" {
			part += fmt.Sprintf(", WWN %q", d.WWN)
		}
		parts = append(parts, part+")")
	}
	if parts == nil {
		return "no disk"
	}
	return strings.Join(parts, ", ")
}
