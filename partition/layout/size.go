package layout

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Size is how large something shall be: bytes, a share of what the disk, group or pool offers, or what the others leave.
type Size struct {
	Bytes   int64
	Percent int64
	Rest    bool
}

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40
	// maxBytes is the largest size that is understood: no disk comes near, and sums of a few thousand of them fit an int64.
	maxBytes = int64(1) << 50
)

// sizePattern stands in the JSON Schema too.
const sizePattern = `^([0-9]{1,16}(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)|(100|[1-9][0-9]?)%|rest)$`

var sizeExpression = regexp.MustCompile(sizePattern)

const sizeHelp = `use bytes as a number, a text such as "512MiB" or "500GB", a share such as "25%", or "rest"`

func sizeUnit(name string) int64 {
	switch name {
	case "KiB":
		return kib
	case "MiB":
		return mib
	case "GiB":
		return gib
	case "TiB":
		return tib
	case "kB":
		return 1e3
	case "MB":
		return 1e6
	case "GB":
		return 1e9
	case "TB":
		return 1e12
	}
	return 1
}

// ParseSize reads a size as layouts write it.
func ParseSize(text string) (Size, error) {
	if !sizeExpression.MatchString(text) {
		return Size{}, fmt.Errorf("%q is no size: %s", clip(text), sizeHelp)
	}
	if text == "rest" {
		return Size{Rest: true}, nil
	}
	digits := strings.TrimRight(text, "BkKMGTi%")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return Size{}, fmt.Errorf("%q is no size: %s", clip(text), sizeHelp)
	}
	if strings.HasSuffix(text, "%") {
		return Size{Percent: n}, nil
	}
	unit := sizeUnit(text[len(digits):])
	if n <= 0 || n > maxBytes/unit {
		return Size{}, fmt.Errorf("%q is out of range: 1 byte to 1024 TiB", clip(text))
	}
	return Size{Bytes: n * unit}, nil
}

func (s Size) isZero() bool { return s == Size{} }

// String is the text that ParseSize reads: the largest binary unit that is exact.
func (s Size) String() string {
	switch {
	case s.Rest:
		return "rest"
	case s.Percent > 0:
		return strconv.FormatInt(s.Percent, 10) + "%"
	}
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if u := sizeUnit(unit); s.Bytes > 0 && s.Bytes%u == 0 {
			return strconv.FormatInt(s.Bytes/u, 10) + unit
		}
	}
	return strconv.FormatInt(s.Bytes, 10) + "B"
}

// MarshalJSON writes bytes that no unit divides as a number, all else as a text.
func (s Size) MarshalJSON() ([]byte, error) {
	if s.Bytes > 0 && s.Bytes%kib != 0 {
		return strconv.AppendInt(nil, s.Bytes, 10), nil
	}
	return json.Marshal(s.String())
}

func (s *Size) decode(n *yaml.Node) error {
	switch n.ShortTag() {
	case "!!str":
		size, err := ParseSize(n.Value)
		*s = size
		return err
	case "!!int":
		bytes, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil || bytes < 1 || bytes > maxBytes {
			return fmt.Errorf("%s is out of range: 1 byte to 1024 TiB", clip(n.Value))
		}
		*s = Size{Bytes: bytes}
		return nil
	}
	return fmt.Errorf("want a size: %s", sizeHelp)
}

// part of whole, rounded down to a multiple of unit.
func (s Size) part(whole, unit int64) int64 {
	// whole is at most maxBytes: times 100 it still fits.
	return whole * s.Percent / 100 / unit * unit
}

// bytesText says a size to people: rounded, with the binary unit that keeps it short; exact sizes stand beside it where they count.
func bytesText(n int64) string {
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		u := sizeUnit(unit)
		if n < u {
			continue
		}
		if n%u == 0 && n/u < 10000 {
			return fmt.Sprintf("%d %s", n/u, unit)
		}
		return fmt.Sprintf("%.1f %s", math.Floor(float64(n)/float64(u)*10)/10, unit)
	}
	return fmt.Sprintf("%d B", n)
}

func roundUp(n, unit int64) int64   { return (n + unit - 1) / unit * unit }
func roundDown(n, unit int64) int64 { return n / unit * unit }
