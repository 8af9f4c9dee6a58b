package coordinator

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/partition/wipe"
)

// disk is what the coordinator reads of a disk in a machine's inventory.
type disk struct {
	Name      string `json:"name"`
	Model     string `json:"model"`
	Serial    string `json:"serial"`
	WWN       string `json:"wwn"`
	Vendor    string `json:"vendor"`
	Firmware  string `json:"firmware"`
	Transport string `json:"transport"`
	SizeBytes int64  `json:"size_bytes"`
	Removable bool   `json:"removable"`
	ReadOnly  bool   `json:"read_only"`
}

// fixed says that a disk is the machine's own: no medium that somebody left in it, no storage of somebody else's.
func (d disk) fixed() bool {
	return !d.Removable && !d.ReadOnly && !wipe.Remote(d.Transport) && (d.Serial != "" || d.WWN != "")
}

func (d disk) ref() *bloomeryv1.DiskRef { return &bloomeryv1.DiskRef{Serial: d.Serial, Wwn: d.WWN} }

func (d disk) String() string {
	return fmt.Sprintf("%s (%s, %s)", d.Serial, d.Name, bytesText(d.SizeBytes))
}

// inventoryDisks reads the disks of the inventory that the agent reported last; none when there is no inventory.
func inventoryDisks(m *bloomeryv1.Machine) []disk {
	if m.GetInventory() == nil {
		return nil
	}
	data, err := m.GetInventory().MarshalJSON()
	if err != nil {
		return nil
	}
	var inventory struct {
		Disks []disk `json:"disks"`
	}
	if err := json.Unmarshal(data, &inventory); err != nil {
		return nil
	}
	return inventory.Disks
}

// chooseDisk returns the disk that was asked for, or the smallest one that holds the image.
func chooseDisk(m *bloomeryv1.Machine, want *bloomeryv1.DiskRef, image ImageFacts) (*bloomeryv1.DiskRef, error) {
	disks := inventoryDisks(m)
	if len(disks) == 0 {
		return nil, notNow("spec.disk", "DISK_NOT_FOUND", "no disk of machine %s is known: inspect it first", m.GetName())
	}
	if want.GetSerial() != "" || want.GetWwn() != "" {
		for _, d := range disks {
			if (want.GetSerial() != "" && d.Serial != want.GetSerial()) || (want.GetWwn() != "" && d.WWN != want.GetWwn()) {
				continue
			}
			if d.SizeBytes < image.SizeBytes {
				return nil, tooSmall(image, d)
			}
			return d.ref(), nil
		}
		return nil, invalid("spec.disk", "DISK_NOT_FOUND", "machine %s has no disk with serial %q wwn %q; it has %s", m.GetName(), clip(want.GetSerial()), clip(want.GetWwn()), diskList(disks))
	}
	fixed := slices.DeleteFunc(slices.Clone(disks), func(d disk) bool { return d.Removable || (d.Serial == "" && d.WWN == "") })
	if len(fixed) == 0 {
		return nil, invalid("spec.disk", "DISK_NOT_FOUND", "machine %s has no fixed disk with a serial number; it has %s", m.GetName(), diskList(disks))
	}
	slices.SortStableFunc(fixed, func(a, b disk) int {
		if a.SizeBytes != b.SizeBytes {
			return int(max(-1, min(1, a.SizeBytes-b.SizeBytes)))
		}
		return strings.Compare(a.Serial, b.Serial)
	})
	for _, d := range fixed {
		if d.SizeBytes >= image.SizeBytes {
			return d.ref(), nil
		}
	}
	return nil, tooSmall(image, fixed[len(fixed)-1])
}

func tooSmall(image ImageFacts, d disk) error {
	return invalid("spec.disk", "DISK_TOO_SMALL", "image %s needs %d bytes (%s), disk %s has %d bytes (%s)",
		image.Name, image.SizeBytes, bytesText(image.SizeBytes), d.Serial, d.SizeBytes, bytesText(d.SizeBytes))
}

func diskList(disks []disk) string {
	var names []string
	for _, d := range disks {
		names = append(names, d.String())
	}
	return list(names)
}

func bytesText(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
