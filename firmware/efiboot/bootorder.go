package efiboot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Prefix starts the description of every entry that SetDisk makes; only entries with it are ever removed.
const Prefix = "Bloomery: "

// maxEntries bounds how many boot entries are read; firmware has a few dozen at most.
const maxEntries = 1024

// BootEntry is one Boot#### variable.
type BootEntry struct {
	Number uint16 // the #### as a number
	LoadOption
}

// Name is the variable's name: "Boot0003".
func (e BootEntry) Name() string { return bootName(e.Number) }

// State is how the firmware will boot.
type State struct {
	Entries    []BootEntry // by number
	Order      []uint16    // BootOrder
	Next       *uint16     // BootNext, if set
	Current    *uint16     // BootCurrent: the entry that started this system, if the firmware says so
	SecureBoot *bool       // nil if the firmware does not know of it
	Unreadable []string    // "Boot0007: why", entries that could not be decoded; they are never touched
}

// Read gives the firmware's boot configuration. A machine that was not started by UEFI has none: the error wraps
// fs.ErrNotExist.
func Read(ctx context.Context, root Root) (State, error) {
	var s State
	files, err := os.ReadDir(string(root))
	if err != nil {
		return State{}, fmt.Errorf("read the EFI boot entries: %w", err)
	}
	for _, f := range files {
		number, ok := bootNumber(f.Name())
		if !ok {
			continue
		}
		if err := ctx.Err(); err != nil {
			return State{}, fmt.Errorf("read the EFI boot entries: %w", err)
		}
		if len(s.Entries)+len(s.Unreadable) == maxEntries {
			return State{}, fmt.Errorf("read the EFI boot entries: there are more than %d", maxEntries)
		}
		option, err := readEntry(root, number)
		if err != nil {
			s.Unreadable = append(s.Unreadable, bootName(number)+": "+err.Error())
			continue
		}
		s.Entries = append(s.Entries, BootEntry{Number: number, LoadOption: option})
	}
	slices.SortFunc(s.Entries, func(a, b BootEntry) int { return int(a.Number) - int(b.Number) })
	if s.Order, err = readNumbers(root, "BootOrder"); err != nil {
		return State{}, err
	}
	if s.Next, err = readNumber(root, "BootNext"); err != nil {
		return State{}, err
	}
	if s.Current, err = readNumber(root, "BootCurrent"); err != nil {
		return State{}, err
	}
	s.SecureBoot, err = SecureBoot(root)
	return s, err
}

// SecureBoot tells whether the firmware checks signatures; nil if it has no such variable.
func SecureBoot(root Root) (*bool, error) {
	data, err := root.read("SecureBoot")
	if errors.Is(err, ErrNoVariable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(data) != 1 {
		return nil, fmt.Errorf("read EFI variable SecureBoot: %d bytes instead of 1", len(data))
	}
	on := data[0] == 1
	return &on, nil
}

// Entry is what SetDisk should make the firmware boot.
type Entry struct {
	Description     string // without Prefix: "debian-12"
	PartitionNumber uint32 // of the EFI system partition, from 1
	PartStartLBA    uint64 // in logical sectors of the disk
	PartSizeLBA     uint64
	PartitionGUID   string // the partition's own (unique) GUID, text form
	Path            string // \EFI\debian\shimx64.efi
	Keep            bool   // leave entries that SetDisk made earlier, for a system that starts from any of several disks
	Next            bool   // also set BootNext, so that the next boot takes it whatever the order says
}

// SetDisk makes the entry the first in BootOrder and keeps all others behind it in their order. An entry of the same
// description and device path is used again; others that SetDisk made earlier are removed unless they are to be kept. Doing it twice changes nothing.
// The entry is written before the order that names it, so that an interruption leaves a machine that boots as before.
func SetDisk(ctx context.Context, root Root, want Entry) (BootEntry, error) {
	guid, err := ParseGUID(want.PartitionGUID)
	if err != nil {
		return BootEntry{}, fmt.Errorf("set the boot entry: partition GUID: %w", err)
	}
	option := LoadOption{Attributes: attrActive, Description: Prefix + strings.TrimPrefix(want.Description, Prefix),
		Disk: &DiskPath{want.PartitionNumber, want.PartStartLBA, want.PartSizeLBA, guid, want.Path}}
	if option.DevicePath, err = option.Disk.encode(); err != nil {
		return BootEntry{}, fmt.Errorf("set the boot entry: %w", err)
	}
	state, err := Read(ctx, root)
	if err != nil {
		return BootEntry{}, fmt.Errorf("set the boot entry: %w", err)
	}
	change, err := plan(state, option, want.Keep)
	if err != nil {
		return BootEntry{}, fmt.Errorf("set the boot entry: %w", err)
	}
	if err := change.apply(root, state, want.Next); err != nil {
		return BootEntry{}, fmt.Errorf("set the boot entry: %w", err)
	}
	return change.entry, nil
}

// change is what SetDisk decided.
type change struct {
	entry  BootEntry
	write  bool // the entry is new
	order  []uint16
	remove []uint16
}

func plan(s State, option LoadOption, keep bool) (change, error) {
	c := change{write: true, entry: BootEntry{LoadOption: option}}
	used := map[uint16]bool{}
	for _, line := range s.Unreadable {
		if number, err := strconv.ParseUint(line[4:8], 16, 16); err == nil {
			used[uint16(number)] = true
		}
	}
	for _, e := range s.Entries {
		used[e.Number] = true
		same := e.Description == option.Description && string(e.DevicePath) == string(option.DevicePath) && e.Active()
		switch {
		case same && c.write:
			c.entry, c.write = e, false
		case !keep && strings.HasPrefix(e.Description, Prefix):
			c.remove = append(c.remove, e.Number)
		}
	}
	if c.write {
		number, err := free(used, s.Order)
		if err != nil {
			return change{}, err
		}
		c.entry.Number = number
	}
	c.order = []uint16{c.entry.Number}
	for _, n := range s.Order {
		if !slices.Contains(c.order, n) && !slices.Contains(c.remove, n) {
			c.order = append(c.order, n)
		}
	}
	return c, nil
}

// free finds a number that no entry has and that the order does not name either.
func free(used map[uint16]bool, order []uint16) (uint16, error) {
	for n := range uint16(maxEntries) {
		if !used[n] && !slices.Contains(order, n) {
			return n, nil
		}
	}
	return 0, errors.New("the firmware has no free boot entry")
}

func (c change) apply(root Root, s State, next bool) error {
	if c.write {
		data, err := c.entry.Encode()
		if err != nil {
			return err
		}
		if err := root.write(c.entry.Name(), data); err != nil {
			return err
		}
	}
	if !slices.Equal(c.order, s.Order) {
		if err := root.write("BootOrder", numbers(c.order...)); err != nil {
			return err
		}
	}
	if next && (s.Next == nil || *s.Next != c.entry.Number) {
		if err := root.write("BootNext", numbers(c.entry.Number)); err != nil {
			return err
		}
	}
	for _, n := range c.remove {
		if err := root.remove(bootName(n)); err != nil {
			return err
		}
	}
	return nil
}

func readEntry(root Root, number uint16) (LoadOption, error) {
	data, err := root.read(bootName(number))
	if err != nil {
		return LoadOption{}, err
	}
	return DecodeLoadOption(data)
}

func readNumbers(root Root, name string) ([]uint16, error) {
	data, err := root.read(name)
	if errors.Is(err, ErrNoVariable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(data)%2 != 0 {
		return nil, fmt.Errorf("read EFI variable %s: an odd number of bytes (%d)", name, len(data))
	}
	list := make([]uint16, 0, len(data)/2)
	for ; len(data) > 0; data = data[2:] {
		list = append(list, binary.LittleEndian.Uint16(data))
	}
	return list, nil
}

func readNumber(root Root, name string) (*uint16, error) {
	list, err := readNumbers(root, name)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

func numbers(list ...uint16) []byte {
	var data []byte
	for _, n := range list {
		data = binary.LittleEndian.AppendUint16(data, n)
	}
	return data
}

func bootName(number uint16) string { return fmt.Sprintf("Boot%04X", number) }

// bootNumber reads a file name such as Boot0001-8be4df61-….
func bootNumber(file string) (uint16, bool) {
	name, ok := strings.CutSuffix(file, "-"+globalVariable)
	if !ok || len(name) != 8 || !strings.HasPrefix(name, "Boot") {
		return 0, false
	}
	n, err := strconv.ParseUint(name[4:], 16, 16)
	return uint16(n), err == nil && bootName(uint16(n)) == name
}
