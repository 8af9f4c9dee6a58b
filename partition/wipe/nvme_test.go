package wipe

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeNVMe is a drive behind admin commands, with the data of a memoryDisk.
type fakeNVMe struct {
	disk             *memoryDisk
	oacs             uint16
	fna, cmic        byte
	sanicap          uint32
	active           []uint32
	unattached       []uint32
	flbas, dps       byte
	silent           bool
	lies             bool
	sanitizeFails    bool
	formatFails      error
	polls            int // that a sanitize operation takes
	running          int
	failed           bool
	formats, actions []uint32
}

func (f *fakeNVMe) NamespaceID() (uint32, error) { return 2, nil }

func (f *fakeNVMe) Admin(c adminCommand) error {
	if f.silent {
		return errors.New("no answer")
	}
	if (f.running > 0 || f.failed) && c.opcode == opFormat {
		return nvmeStatus(0x1d)
	}
	switch c.opcode {
	case opIdentify:
		switch c.cdw10 {
		case identifyController:
			binary.LittleEndian.PutUint16(c.data[256:], f.oacs)
			binary.LittleEndian.PutUint32(c.data[328:], f.sanicap)
			c.data[524], c.data[76] = f.fna, f.cmic
		case identifyNamespace:
			c.data[26], c.data[29] = f.flbas, f.dps
		case identifyActive:
			putList(c.data, f.active)
		case identifyAllocated:
			putList(c.data, f.unattached)
		}
	case opSanitize:
		f.actions = append(f.actions, c.cdw10)
		if c.cdw10 == sanitizeExitFailure {
			f.failed = false
			return nil
		}
		f.running = f.polls
		f.end()
	case opGetLogPage:
		f.running = max(f.running-1, 0)
		f.end()
		switch {
		case f.running > 0:
			binary.LittleEndian.PutUint16(c.data, uint16(65536*(f.polls-f.running)/f.polls))
			c.data[2] = 2
		case f.failed:
			c.data[2] = 3
		default:
			c.data[2] = 1
		}
	case opFormat:
		f.formats = append(f.formats, c.cdw10)
		if f.formatFails != nil {
			return f.formatFails
		}
		if !f.lies {
			clear(f.disk.data)
		}
	}
	return nil
}

func (f *fakeNVMe) end() {
	switch {
	case f.running > 0:
	case f.sanitizeFails:
		f.failed = len(f.actions) > 0 && f.actions[len(f.actions)-1] != sanitizeExitFailure
	case !f.lies:
		clear(f.disk.data)
	}
}

func putList(p []byte, ids []uint32) {
	for i, id := range ids {
		binary.LittleEndian.PutUint32(p[4*i:], id)
	}
}

func TestNVMe(t *testing.T) {
	for _, c := range []struct {
		name       string
		drive      fakeNVMe
		method     Method
		actions    []uint32
		formats    []uint32
		passedOver string // parts of the reasons, in order
	}{
		{name: "sanitizes by block erase", drive: fakeNVMe{oacs: 2, sanicap: 3, polls: 3}, method: MethodSanitizeBlock, actions: []uint32{2 | 8}},
		{name: "sanitizes by forgetting its key", drive: fakeNVMe{oacs: 2, sanicap: 1}, method: MethodSanitizeCrypto, actions: []uint32{4 | 8}, passedOver: "not offer it"},
		{name: "formats and forgets its key", drive: fakeNVMe{oacs: 2, fna: 4, flbas: 0x11, dps: 9}, method: MethodFormatCrypto, formats: []uint32{0x1 | 1<<4 | 1<<5 | 1<<8 | 2<<9}, passedOver: "not offer it|not offer it"},
		{name: "formats", drive: fakeNVMe{oacs: 2}, method: MethodFormatErase, formats: []uint32{1 << 9}, passedOver: "not offer it|not offer it|not offer it"},
		{name: "can nothing", method: MethodOverwrite, passedOver: "not offer it|not offer it|format command|format command|proves nothing"},
		{name: "says nothing", drive: fakeNVMe{silent: true}, method: MethodOverwrite, passedOver: "no answer|proves nothing"},
		{name: "lies", drive: fakeNVMe{oacs: 2, sanicap: 2, lies: true}, method: MethodOverwrite, actions: []uint32{10}, formats: []uint32{1 << 9},
			passedOver: "kept|not offer it|not offer it|kept|proves nothing"},
		{name: "a sanitize operation fails", drive: fakeNVMe{oacs: 2, sanicap: 2, sanitizeFails: true, polls: 2}, method: MethodFormatErase, actions: []uint32{10, 1}, formats: []uint32{1 << 9},
			passedOver: "operation failed|not offer it|not offer it"},
		{name: "a format fails", drive: fakeNVMe{oacs: 2, formatFails: nvmeStatus(0x410a)}, method: MethodOverwrite, formats: []uint32{1 << 9},
			passedOver: "not offer it|not offer it|not offer it|status 0x10a: the format|proves nothing"},
		{name: "shares the drive", drive: fakeNVMe{oacs: 2, sanicap: 3, active: []uint32{1, 2, 9}}, method: MethodFormatErase, formats: []uint32{1 << 9},
			passedOver: "other namespaces too: [1 9]|[1 9]|not offer it"},
		{name: "shares the drive, and formats all of it only", drive: fakeNVMe{oacs: 2, fna: 2, sanicap: 3, active: []uint32{1, 2}}, method: MethodOverwrite,
			passedOver: "[1]|[1]|not offer it|erases all namespaces|proves nothing"},
		{name: "has namespaces that are not attached", drive: fakeNVMe{oacs: 2 | 8, sanicap: 3, active: []uint32{2}, unattached: []uint32{2, 3}}, method: MethodFormatErase, formats: []uint32{1 << 9},
			passedOver: "other namespaces too: [3]|[3]|not offer it"},
		{name: "may have a second host", drive: fakeNVMe{oacs: 2, cmic: 2, sanicap: 3}, method: MethodFormatErase, formats: []uint32{1 << 9}, passedOver: "second host|second host|not offer it"},
		{name: "was left in the middle of it", drive: fakeNVMe{oacs: 2, sanicap: 2, running: 3, polls: 3}, method: MethodSanitizeBlock, actions: []uint32{10}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, drive := fullDisk(36), c.drive
			drive.disk = m
			if drive.active == nil {
				drive.active = []uint32{2}
			}
			e := &engine{disk: m, seed: seeded(1), means: func(ctx context.Context, tick func(float64)) ([]eraser, error) {
				d, err := readNVMe(&drive)
				if err != nil {
					return nvmeMeans(ctx, &drive, tick)
				}
				d.poll = time.Millisecond
				if err := d.ready(ctx, tick); err != nil {
					return nil, err
				}
				return d.erasers(), nil
			}}
			result, err := e.run(t.Context(), Erase)
			if err != nil {
				t.Fatal(err)
			}
			if result.Method != c.method || !slices.Equal(drive.actions, c.actions) || !slices.Equal(drive.formats, c.formats) {
				t.Errorf("%s with sanitize actions %d and formats %#x, want %s, %d, %#x", result.Method, drive.actions, drive.formats, c.method, c.actions, c.formats)
			}
			wantReasons(t, result, c.passedOver)
			gone(t, m.data)
		})
	}
}

func wantReasons(t *testing.T, result Result, parts string) {
	t.Helper()
	var want []string
	if parts != "" {
		want = strings.Split(parts, "|")
	}
	if len(want) != len(result.PassedOver) {
		t.Fatalf("passed over %+v, want %q", result.PassedOver, want)
	}
	for i, p := range result.PassedOver {
		if !strings.Contains(p.Reason, want[i]) {
			t.Errorf("%s was passed over since %q, want %q", p.Method, p.Reason, want[i])
		}
	}
}

func TestSanitizeTellsProgressAndStops(t *testing.T) {
	f := &fakeNVMe{disk: fullDisk(1), polls: 4, sanicap: 2}
	d := &nvmeDrive{admin: f, poll: time.Millisecond}
	var parts []float64
	if err := d.sanitize(t.Context(), sanitizeBlockErase, func(part float64) { parts = append(parts, part) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(parts, []float64{0.25, 0.5, 0.75}) {
		t.Errorf("progress %v", parts)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.polls = 1 << 30
	if err := d.sanitize(ctx, sanitizeBlockErase, func(float64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func FuzzNVMe(f *testing.F) {
	f.Add([]byte{0, 0, 2, 0}, make([]byte, identifyBytes), []byte{1, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, log, identify, list []byte) {
		if s := parseSanitizeLog(log); s.part < 0 || s.part >= 1 || (s.running && s.failed) {
			t.Fatalf("%+v", s)
		}
		if slices.Contains(otherNamespaces(list, 1), 1) {
			t.Fatal("its own namespace is another one")
		}
		identify = append(identify, make([]byte, identifyBytes)...)[:identifyBytes]
		d := &nvmeDrive{}
		d.parse(identify, identify)
		if d.lba&(7<<9) != 0 || d.lba>>14 != 0 {
			t.Fatalf("the present format %#x reaches into other fields of the command", d.lba)
		}
	})
}
