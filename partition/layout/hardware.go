package layout

import (
	"encoding/json"
	"fmt"
)

// Hardware is what an inventory knows of a machine that a plan depends on.
type Hardware struct {
	Disks []Disk `json:"disks"`
	BIOS  struct {
		UEFI bool `json:"uefi"`
	} `json:"bios"`
	TPM struct {
		Present bool `json:"present"`
		Version int  `json:"version"`
	} `json:"tpm"`
}

// DecodeHardware reads an inventory's JSON.
func DecodeHardware(data []byte) (Hardware, error) {
	var h Hardware
	if err := json.Unmarshal(data, &h); err != nil {
		return Hardware{}, fmt.Errorf("decode the inventory: %w", err)
	}
	return h, nil
}

// Target is a plan's target on this hardware.
func (h Hardware) Target() Target {
	return Target{UEFI: h.BIOS.UEFI, TPM2: h.TPM.Present && h.TPM.Version == 2}
}
