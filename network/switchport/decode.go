package switchport

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
)

const maxEntries = 1 << 20 // of a forwarding table; the largest switches hold some 300,000

func decodeSwitchedVLAN(answer []*gpb.Notification) (Mode, uint16, error) {
	c, err := container(answer, "config")
	if err != nil {
		return "", 0, err
	}
	mode, _ := c["interface-mode"].(string)
	mode = bare(mode)
	switch Mode(mode) {
	case ModeAccess, ModeTrunk, "":
	default:
		return "", 0, fmt.Errorf("%w: interface-mode %.40q", errBadAnswer, mode)
	}
	v, ok := c["access-vlan"]
	if !ok {
		return Mode(mode), 0, nil
	}
	vlan, err := number(v, MaxVLAN)
	if err != nil {
		return "", 0, fmt.Errorf("access-vlan: %w", err)
	}
	return Mode(mode), uint16(vlan), nil
}

func decodeLinkUp(answer []*gpb.Notification) (bool, error) {
	c, err := container(answer, "state")
	if err != nil {
		return false, err
	}
	s, ok := c["oper-status"].(string)
	if !ok {
		return false, fmt.Errorf("%w: no oper-status", errBadAnswer)
	}
	return bare(s) == "UP", nil
}

// decodeSpeed understands openconfig-if-ethernet's SPEED_10MB to SPEED_800GB; 0 is anything else.
func decodeSpeed(answer []*gpb.Notification) (uint32, error) {
	c, err := container(answer, "state")
	if err != nil {
		return 0, err
	}
	s, _ := c["port-speed"].(string)
	s = strings.TrimPrefix(bare(s), "SPEED_")
	unit := uint64(1)
	digits, mega := strings.CutSuffix(s, "MB")
	if !mega {
		var giga bool
		if digits, giga = strings.CutSuffix(s, "GB"); !giga {
			return 0, nil // SPEED_UNKNOWN
		}
		unit = 1000
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return 0, nil // SPEED_2500MB is a number; a vendor's own name is no reason to stop
	}
	return uint32(n * unit), nil
}

// decodeFDB returns what is learned on the port. It takes entries as one list, as one update an entry and as one update a
// leaf, with or without module prefixes, with the VLAN in the key, the entry, its state or nowhere.
func decodeFDB(answer []*gpb.Notification, port string) ([]LearnedMAC, error) {
	var entries []map[string]any
	byKey := map[string]map[string]any{}
	err := eachUpdate(answer, func(elems []*gpb.PathElem, v any) error {
		at := slices.IndexFunc(elems, func(e *gpb.PathElem) bool { return bare(e.GetName()) == "entry" })
		if at >= 0 && len(elems[at].GetKey()) > 0 {
			keys := map[string]any{}
			for k, s := range elems[at].GetKey() {
				keys[bare(k)] = s
			}
			id := fmt.Sprintf("%q %q", keys["mac-address"], keys["vlan"])
			e, ok := byKey[id]
			if !ok {
				if len(byKey) >= maxEntries {
					return fmt.Errorf("%w: more than %d entries", errBadAnswer, maxEntries)
				}
				e = map[string]any{}
				byKey[id] = e
				entries = append(entries, e)
			}
			// Some switches answer one entry as a list of one.
			if l, ok := v.([]any); ok && at == len(elems)-1 && len(l) == 1 {
				v = l[0]
			}
			if err := merge(e, nest(elems[at+1:], v)); err != nil {
				return err
			}
			return merge(e, keys)
		}
		if at < 0 {
			members, ok := v.(map[string]any)
			if !ok {
				return fmt.Errorf("%w: %.40q where the forwarding table was expected", errBadAnswer, fmt.Sprint(v))
			}
			inner, ok := find(members, "entry", maxDepth)
			if !ok {
				return nil // an empty table
			}
			v = inner
		} else if m, ok := v.(map[string]any); ok {
			if inner, ok := m["entry"]; ok {
				v = inner
			}
		}
		if one, ok := v.(map[string]any); ok {
			v = []any{one}
		}
		l, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%w: forwarding entries are not a list", errBadAnswer)
		}
		if len(entries)+len(l) > maxEntries {
			return fmt.Errorf("%w: more than %d entries", errBadAnswer, maxEntries)
		}
		for _, item := range l {
			e, ok := item.(map[string]any)
			if !ok {
				return fmt.Errorf("%w: a forwarding entry is not an object", errBadAnswer)
			}
			entries = append(entries, e)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []LearnedMAC
	for _, e := range entries {
		if text(e, "interface/interface-ref/state/interface", "interface/interface-ref/config/interface", "interface", "state/interface") != port {
			continue
		}
		l, err := decodeEntry(e)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b LearnedMAC) int { return bytes.Compare(a.MAC, b.MAC) })
	return out, nil
}

func decodeEntry(e map[string]any) (LearnedMAC, error) {
	s := text(e, "mac-address", "state/mac-address", "config/mac-address")
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 {
		return LearnedMAC{}, fmt.Errorf("%w: mac-address %.40q", errBadAnswer, s)
	}
	l := LearnedMAC{MAC: m}
	if v := lookup(e, "vlan", "state/vlan", "config/vlan"); v != nil {
		n, err := number(v, 4095)
		if err != nil {
			return LearnedMAC{}, fmt.Errorf("entry %s: vlan: %w", m, err)
		}
		l.VLAN = uint16(n)
	}
	if v := lookup(e, "state/age"); v != nil {
		n, err := number(v, 1<<31)
		if err != nil {
			return LearnedMAC{}, fmt.Errorf("entry %s: age: %w", m, err)
		}
		l.Age = time.Duration(n) * time.Second
	}
	return l, nil
}

// lookup returns the first of the paths that leads to a leaf.
func lookup(e map[string]any, paths ...string) any {
	for _, p := range paths {
		var v any = e
		for _, name := range strings.Split(p, "/") {
			m, ok := v.(map[string]any)
			if !ok {
				v = nil
				break
			}
			v = m[name]
		}
		switch v.(type) {
		case string, json.Number:
			return v
		}
	}
	return nil
}

func text(e map[string]any, paths ...string) string {
	s, _ := lookup(e, paths...).(string)
	return s
}

// number takes JSON numbers and, as RFC 7951 section 6.1 writes 64-bit ones, strings.
func number(v any, most uint64) (uint64, error) {
	var s string
	switch x := v.(type) {
	case json.Number:
		s = x.String()
	case string:
		s = x
	default:
		return 0, fmt.Errorf("%w: %.40q is not a number", errBadAnswer, fmt.Sprint(v))
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %.40q is not a number", errBadAnswer, s)
	}
	if n > most {
		return 0, fmt.Errorf("%w: %d is above %d", errBadAnswer, n, most)
	}
	return n, nil
}
