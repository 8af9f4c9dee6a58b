package efiboot

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// GUID is an EFI_GUID as it lies in memory: the first three fields little endian (UEFI specification, appendix A).
type GUID [16]byte

// order maps the bytes of the text form to those in memory.
func order() [16]int { return [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} }

// ParseGUID reads the text form, in either case: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".
func ParseGUID(s string) (GUID, error) {
	var g GUID
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != 16 || len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("%q is no GUID such as c12a7328-f81f-11d2-ba4b-00a0c93ec93b", s)
	}
	for i, from := range order() {
		g[from] = raw[i]
	}
	return g, nil
}

// String is the text form in lower case.
func (g GUID) String() string {
	var raw [16]byte
	for i, from := range order() {
		raw[i] = g[from]
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}
