package wipe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// adminCommand is an NVMe admin command, as the kernel passes it through.
type adminCommand struct {
	opcode uint8
	nsid   uint32
	cdw10  uint32
	// data is what the drive answers.
	data    []byte
	timeout time.Duration
}

// nvmeAdmin sends admin commands to the controller of one namespace; tests fake it.
type nvmeAdmin interface {
	NamespaceID() (uint32, error)
	Admin(c adminCommand) error
}

// Opcodes and fields of the NVM Express base specification 2.0 (sections 5.14 Format NVM, 5.16 Get Log Page, 5.17 Identify, 5.22 Sanitize).
const (
	opGetLogPage = 0x02
	opIdentify   = 0x06
	opFormat     = 0x80
	opSanitize   = 0x84

	identifyNamespace    = 0x00
	identifyController   = 0x01
	identifyActive       = 0x02
	identifyAllocated    = 0x10
	identifyBytes        = 4096
	logSanitize          = 0x81
	logSanitizeBytes     = 512
	allNamespaces        = 0xffffffff
	sanitizeExitFailure  = 1
	sanitizeBlockErase   = 2
	sanitizeCryptoErase  = 4
	sanitizeUnrestricted = 1 << 3 // AUSE: a failure may be left behind without another sanitize operation
	formatUserDataErase  = 1
	formatCryptographic  = 2
	shortCommand         = 30 * time.Second
	formatTimeout        = 4 * time.Hour
	sanitizePoll         = time.Second
)

// nvmeDrive is what a drive says of itself.
type nvmeDrive struct {
	admin nvmeAdmin
	nsid  uint32
	// poll is how often a running sanitize operation is looked at.
	poll time.Duration

	format, formatsAll, erasesAll, crypto bool
	sanitizeBlock, sanitizeCrypto         bool
	// lba is the present format of the namespace, as the first nine bits of a format command.
	lba uint32
	// shared says why an erasure of the whole drive would reach more than this disk; "" if it would not.
	shared string
}

// readNVMe asks the drive what it can.
func readNVMe(admin nvmeAdmin) (*nvmeDrive, error) {
	nsid, err := admin.NamespaceID()
	if err != nil {
		return nil, fmt.Errorf("ask for the namespace's number: %w", err)
	}
	d := &nvmeDrive{admin: admin, nsid: nsid, poll: sanitizePoll}
	controller, err := d.identify(identifyController, 0)
	if err != nil {
		return nil, err
	}
	namespace, err := d.identify(identifyNamespace, nsid)
	if err != nil {
		return nil, err
	}
	active, err := d.identify(identifyActive, 0)
	if err != nil {
		return nil, err
	}
	d.parse(controller, namespace)
	others := otherNamespaces(active, nsid)
	if binary.LittleEndian.Uint16(controller[256:])&(1<<3) != 0 {
		// With namespace management there may be some that are attached to no controller.
		if allocated, err := d.identify(identifyAllocated, 0); err == nil {
			others = append(others, otherNamespaces(allocated, nsid)...)
		}
	}
	slices.Sort(others)
	switch others = slices.Compact(others); {
	case controller[76]&(1<<1) != 0:
		// CMIC: the subsystem may have another controller, and that one another host.
		d.shared = "the drive may have a second host"
	case len(others) > 0:
		d.shared = fmt.Sprintf("the drive has other namespaces too: %v", others)
	}
	return d, nil
}

// parse reads both Identify structures (figures 275 and 97 of the command set specification); they have 4096 bytes.
func (d *nvmeDrive) parse(controller, namespace []byte) {
	d.format = binary.LittleEndian.Uint16(controller[256:])&(1<<1) != 0
	fna := controller[524]
	d.formatsAll, d.erasesAll, d.crypto = fna&1 != 0, fna&2 != 0, fna&4 != 0
	sanitize := binary.LittleEndian.Uint32(controller[328:])
	d.sanitizeCrypto, d.sanitizeBlock = sanitize&1 != 0, sanitize&2 != 0
	flbas, protection := uint32(namespace[26]), uint32(namespace[29])
	d.lba = flbas&0xf | flbas>>4&1<<4 | protection&7<<5 | protection>>3&1<<8 | flbas>>5&3<<12
}

// otherNamespaces reads a list of namespaces: numbers that rise, up to the first zero.
func otherNamespaces(list []byte, own uint32) (others []uint32) {
	for ; len(list) >= 4; list = list[4:] {
		id := binary.LittleEndian.Uint32(list)
		if id == 0 {
			break
		}
		if id != own {
			others = append(others, id)
		}
	}
	return others
}

func (d *nvmeDrive) identify(what, nsid uint32) ([]byte, error) {
	data := make([]byte, identifyBytes)
	if err := d.admin.Admin(adminCommand{opcode: opIdentify, nsid: nsid, cdw10: what, data: data, timeout: shortCommand}); err != nil {
		return nil, fmt.Errorf("identify %#x: %w", what, err)
	}
	return data, nil
}

// erasers are the drive's, best first: a sanitize operation reaches what is in no namespace too, and a block erase leaves nothing to decrypt.
func (d *nvmeDrive) erasers() []eraser {
	sanitize := func(m Method, action uint32, offered bool) eraser {
		e := eraser{method: m, sanitization: Purge, noise: action == sanitizeCryptoErase,
			command: fmt.Sprintf("nvme sanitize, action %d, unrestricted exit", action),
			erase:   func(ctx context.Context, tick func(float64)) error { return d.sanitize(ctx, action, tick) }}
		switch {
		case !offered:
			e.refused = "the drive does not offer it"
		case d.shared != "":
			e.refused = d.shared
		}
		return e
	}
	format := func(m Method, ses uint32, offered, all bool) eraser {
		e := eraser{method: m, sanitization: Purge, noise: ses == formatCryptographic,
			command: fmt.Sprintf("nvme format of namespace %d, secure erase setting %d", d.nsid, ses),
			erase: func(ctx context.Context, tick func(float64)) error {
				return d.admin.Admin(adminCommand{opcode: opFormat, nsid: d.nsid, cdw10: d.lba | ses<<9, timeout: formatTimeout})
			}}
		switch {
		case !d.format:
			e.refused = "the drive does not offer the format command"
		case !offered:
			e.refused = "the drive does not offer it"
		case all && d.shared != "":
			e.refused = "it erases all namespaces: " + d.shared
		}
		return e
	}
	all := d.formatsAll || d.erasesAll
	return []eraser{
		sanitize(MethodSanitizeBlock, sanitizeBlockErase, d.sanitizeBlock),
		sanitize(MethodSanitizeCrypto, sanitizeCryptoErase, d.sanitizeCrypto),
		format(MethodFormatCrypto, formatCryptographic, d.crypto, all),
		format(MethodFormatErase, formatUserDataErase, true, all),
	}
}

func (d *nvmeDrive) sanitize(ctx context.Context, action uint32, tick func(float64)) error {
	if err := d.admin.Admin(adminCommand{opcode: opSanitize, cdw10: action | sanitizeUnrestricted, timeout: shortCommand}); err != nil {
		return err
	}
	return d.awaitSanitize(ctx, tick)
}

// ready waits for a sanitize operation that an interrupted wipe has left running, since the drive refuses everything else until it ends.
func (d *nvmeDrive) ready(ctx context.Context, tick func(float64)) error {
	if !d.sanitizeBlock && !d.sanitizeCrypto {
		return nil
	}
	if err := d.awaitSanitize(ctx, tick); err != nil && ctx.Err() != nil {
		return err
	}
	// A failed one was left behind; whether the drive works after it shows when the markers are written.
	return nil
}

// awaitSanitize looks at the sanitize operation until it ends, and leaves its failure behind so that other means can be tried.
func (d *nvmeDrive) awaitSanitize(ctx context.Context, tick func(float64)) error {
	pause := time.NewTicker(d.poll)
	defer pause.Stop()
	for {
		page := make([]byte, logSanitizeBytes)
		err := d.admin.Admin(adminCommand{opcode: opGetLogPage, nsid: allNamespaces, cdw10: logSanitize | (logSanitizeBytes/4-1)<<16, data: page, timeout: shortCommand})
		if err != nil {
			return fmt.Errorf("read the log of the sanitize operation: %w", err)
		}
		status := parseSanitizeLog(page)
		switch {
		case status.failed:
			err := errors.New("the drive says that its sanitize operation failed")
			return errors.Join(err, d.admin.Admin(adminCommand{opcode: opSanitize, cdw10: sanitizeExitFailure, timeout: shortCommand}))
		case !status.running:
			return nil
		}
		tick(status.part)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
	}
}

type sanitizeStatus struct {
	running, failed bool
	// part is how much is done, 0 to 1.
	part float64
}

// parseSanitizeLog reads log page 81h: progress in 65536ths, then the state in three bits (section 5.16.1.25).
func parseSanitizeLog(page []byte) sanitizeStatus {
	if len(page) < 4 {
		return sanitizeStatus{}
	}
	state := binary.LittleEndian.Uint16(page[2:]) & 7
	return sanitizeStatus{running: state == 2, failed: state == 3, part: float64(binary.LittleEndian.Uint16(page)) / 65536}
}
