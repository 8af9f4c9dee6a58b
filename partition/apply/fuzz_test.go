package apply

import (
	"strings"
	"testing"

	"bloomery/partition/layout"
)

// FuzzAnswers reads any text as each tool's answer and as the kernel's: labels and names in them are whatever a disk says.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{recordedTable, recordedEntry, recordedArray, recordedVolumes, recordedGroup, recordedLUKS,
		"LABEL=a\\\nUUID=\\", "1 0 8:1 / /a\\040b rw - ext4 /dev/sda1 rw", "ID 256 gen 8 top level 5 path @home"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		text := string(data)
		parseTable(text)
		parseEntry(text).against(layout.PartitionPlan{}, 512)
		parseArrayState(data).against(layout.ArrayPlan{}, nil)
		parseSubvolumes(text)
		blkidText(text)
		splitMapperName(text)
		if states, err := parseVolumeStates(data); err == nil {
			for _, s := range states {
				s.against(layout.VolumePlan{})
			}
		}
		if metadata, err := parseLUKS(data); err == nil {
			metadata.against(layout.LUKSPlan{})
		}
		for _, mounted := range parseMounts(text) {
			if mounted.number == "" || mounted.point == "" || mounted.kind == "" {
				t.Errorf("an incomplete mount %+v from %q", mounted, text)
			}
		}
		// No volume's name begins with a hyphen (lvm(8)).
		group, volume := splitMapperName(mapperName("g", text))
		if !strings.HasPrefix(text, "-") && (group != "g" || volume != text) {
			t.Errorf("%q became %q/%q", text, group, volume)
		}
	})
}
