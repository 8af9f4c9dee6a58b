// Package firmware knows the versions of the firmware that a machine runs. Its subpackages change boot entries (efiboot)
// and talk to the BMC (bmc).
package firmware

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Root says where the kernel shows its devices and processes: "/sys", "/proc".
type Root struct {
	Sys  string
	Proc string
}

// Version is one piece of firmware. Fields that the machine does not tell are empty.
type Version struct {
	Component string `json:"component"` // "bios", "microcode", "ec"
	Vendor    string `json:"vendor,omitempty"`
	Version   string `json:"version,omitempty"`
	Date      string `json:"date,omitempty"` // as SMBIOS has it: MM/DD/YYYY
}

// Versions reads what the kernel knows: BIOS and embedded controller from SMBIOS types 0 (Documentation/ABI/testing/
// sysfs-class-dmi), microcode from /proc/cpuinfo. What is not there is left out.
func Versions(root Root) ([]Version, error) {
	dmi := func(name string) (string, error) { return readText(filepath.Join(root.Sys, "class/dmi/id", name)) }
	bios := Version{Component: "bios"}
	ec := Version{Component: "ec"}
	for _, field := range []struct {
		file string
		into *string
	}{
		{"bios_vendor", &bios.Vendor}, {"bios_version", &bios.Version}, {"bios_date", &bios.Date}, {"ec_firmware_release", &ec.Version},
	} {
		text, err := dmi(field.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the firmware's versions: %w", err)
		}
		*field.into = text
	}
	microcode, err := microcode(filepath.Join(root.Proc, "cpuinfo"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the firmware's versions: %w", err)
	}
	var list []Version
	for _, v := range []Version{bios, ec, {Component: "microcode", Version: microcode}} {
		if v.Version != "" {
			list = append(list, v)
		}
	}
	return list, nil
}

func microcode(path string) (string, error) {
	data, err := readLimited(path, 1<<20)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(data) {
		if key, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(key) == "microcode" {
			return clean(value), nil
		}
	}
	return "", nil
}

func readText(path string) (string, error) {
	data, err := readLimited(path, 4096)
	return clean(string(data)), err
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// clean keeps what firmware wrote fit for a terminal and a database: one line of printable characters, at most 128 bytes.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if s = strings.TrimSpace(s); len(s) > 128 {
		s = strings.ToValidUTF8(s[:128], "")
	}
	return s
}
