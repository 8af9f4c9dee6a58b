package partition

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

// efiText is a variable of efivarfs.
func efiText(s string) []byte {
	data := []byte{6, 0, 0, 0}
	for _, unit := range utf16.Encode([]rune(s)) {
		data = binary.LittleEndian.AppendUint16(data, unit)
	}
	return data
}

func FuzzParseStartedFrom(f *testing.F) {
	f.Add(efiText("B100E000-0000-4000-8000-000000000002\x00"))
	f.Add(efiText("b100e000-0000-4000-8000-00000000000"))
	f.Add([]byte{6, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		guid, err := parseStartedFrom(data)
		if err == nil && (len(guid) != 36 || strings.ToLower(guid) != guid) {
			t.Errorf("%x gives %q", data, guid)
		}
	})
}

func TestParseStartedFrom(t *testing.T) {
	if guid, err := parseStartedFrom(efiText("B100E000-0000-4000-8000-000000000002\x00")); err != nil || guid != "b100e000-0000-4000-8000-000000000002" {
		t.Errorf("got %q, %v", guid, err)
	}
}

// Without the variable, as after a network boot, no disk is the boot medium; with one that cannot be read every disk might be.
func TestCheckNotBootMedium(t *testing.T) {
	d := Disks{Sysfs: t.TempDir()}
	if err := d.CheckNotBootMedium("/dev/none"); err != nil {
		t.Error(err)
	}
	file := filepath.Join(d.Sysfs, startedFrom)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"nonsense": "no GUID", "b100e000-0000-4000-8000-000000000002": "/dev/none"} {
		if err := os.WriteFile(file, efiText(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.CheckNotBootMedium("/dev/none"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}
