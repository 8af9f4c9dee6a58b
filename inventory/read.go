package inventory

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	maxFile = 1 << 20
	maxText = 256
)

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func readText(path string) (string, error) {
	data, err := readLimited(path)
	return clean(string(data)), err
}

// optional is readText for what many devices lack.
func optional(path string) string {
	text, err := readText(path)
	if err != nil {
		return ""
	}
	return text
}

// readNumber gives 0 for what is not there.
func readNumber(path string) int64 {
	n, err := strconv.ParseInt(optional(path), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// linkName is the last element of what a link points to.
func linkName(path string) string {
	target, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return clean(filepath.Base(target))
}

// clean makes what hardware says fit for a terminal, a log and a database.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return -1
		default:
			return r
		}
	}, strings.ToValidUTF8(s, ""))
	s = strings.TrimSpace(s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

// known empties what makers write where they have nothing to say; such a "serial" is the same on every board.
func known(s string) string {
	switch strings.ToLower(strings.Trim(s, " .")) {
	case "to be filled by o.e.m", "to be filled by oem", "default string", "not specified", "none", "n/a", "na", "unknown", "not available",
		"system serial number", "system product name", "system manufacturer", "o.e.m", "oem", "0123456789", "123456789", "no asset tag", "asset tag",
		"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "03000200-0400-0500-0006-000700080009", "undefined", "empty", "no dimm":
		return ""
	}
	return s
}
