package wipe

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bloomery/internal/run"
)

// ataPassword locks a drive between the beginning and the end of its security erase, which takes it away again. It is no secret: whoever finds a
// drive that lost its power in between can unlock it, as docs/wipe.md says.
const ataPassword = "bloomery"

// ataWord names a word of IDENTIFY DEVICE (ACS-3, section 7.12.7).
const (
	ataWords         = 256
	ataCommandSet    = 82
	ataEraseTime     = 89
	ataEnhancedTime  = 90
	ataSecurity      = 128
	ataCommand       = time.Minute
	ataUnknownLength = 12 * time.Hour
)

// ataSecurityState is what a drive says about its security feature set.
type ataSecurityState struct {
	supported, enabled, locked, frozen, expired, enhanced bool
	// eraseTime and enhancedTime are the drive's own estimates; 0 if it gives none.
	eraseTime, enhancedTime time.Duration
}

// parseIdentify reads what hdparm --Istdout prints: the 256 words of IDENTIFY DEVICE in hexadecimal, after a line with the device's name.
func parseIdentify(text string) ([]uint16, error) {
	var words []uint16
	for _, field := range strings.Fields(text) {
		if len(field) != 4 {
			continue // the device's name
		}
		word, err := strconv.ParseUint(field, 16, 16)
		if err != nil {
			continue
		}
		if words = append(words, uint16(word)); len(words) > ataWords {
			break
		}
	}
	if len(words) != ataWords {
		return nil, fmt.Errorf("identify the drive: hdparm gives %d words, want %d", len(words), ataWords)
	}
	return words, nil
}

func parseSecurity(words []uint16) ataSecurityState {
	w := words[ataSecurity]
	return ataSecurityState{
		supported: words[ataCommandSet]&(1<<1) != 0 && w&1 != 0, enabled: w&(1<<1) != 0, locked: w&(1<<2) != 0, frozen: w&(1<<3) != 0,
		expired: w&(1<<4) != 0, enhanced: w&(1<<5) != 0,
		eraseTime: eraseMinutes(words[ataEraseTime]), enhancedTime: eraseMinutes(words[ataEnhancedTime]),
	}
}

// eraseMinutes counts in two minutes, in the lower byte or, when bit 15 says so, in 15 bits; their largest value means that much or more.
func eraseMinutes(word uint16) time.Duration {
	n := word & 0xff
	if word&(1<<15) != 0 {
		n = word & 0x7fff
	}
	return time.Duration(n) * 2 * time.Minute
}

// ataDrive erases a drive by hdparm.
type ataDrive struct {
	runner run.Runner
	dev    string
	state  ataSecurityState
	// rotational: on a disk with flash a security erase may leave spare cells.
	rotational bool
}

func (d *ataDrive) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ataCommand)
	defer cancel()
	out, err := run.Output(ctx, d.runner, []string{"hdparm", "--Istdout", d.dev})
	if err != nil {
		return fmt.Errorf("identify the drive: %w", err)
	}
	words, err := parseIdentify(string(out))
	if err != nil {
		return err
	}
	d.state = parseSecurity(words)
	return nil
}

// ready unlocks a drive that an interrupted wipe has left locked: until then it gives and takes no data.
func (d *ataDrive) ready(ctx context.Context) error {
	if err := d.read(ctx); err != nil {
		return err
	}
	switch {
	case !d.state.enabled:
		return nil
	case d.state.frozen:
		return errors.New("the drive has a password and its security is frozen by the firmware: switch the machine off and on again")
	case d.state.expired:
		return errors.New("the drive takes no more passwords before it is switched off and on again")
	}
	if d.state.locked {
		if err := d.hdparm(ctx, ataCommand, "--security-unlock"); err != nil {
			return fmt.Errorf("the drive is locked with a password that is not ours: %w", err)
		}
	}
	if err := d.hdparm(ctx, ataCommand, "--security-disable"); err != nil {
		return fmt.Errorf("the drive has a password that is not ours: %w", err)
	}
	return d.read(ctx)
}

func (d *ataDrive) erasers() []eraser {
	way := func(m Method, worth Sanitization, flag string, offered bool, takes time.Duration) eraser {
		e := eraser{method: m, sanitization: worth, command: "hdparm --user-master u " + flag,
			erase: func(ctx context.Context, tick func(float64)) error { return d.erase(ctx, flag, takes, tick) }}
		switch s := d.state; {
		case !s.supported:
			e.refused = "the drive has no security feature set"
		case s.frozen:
			e.refused = "the machine's firmware has frozen the drive's security"
		case s.locked || s.enabled:
			e.refused = "the drive has a password"
		case !offered:
			e.refused = "the drive does not offer it"
		}
		return e
	}
	enhanced := Clear
	if d.rotational {
		enhanced = Purge
	}
	return []eraser{
		way(MethodATAEnhanced, enhanced, "--security-erase-enhanced", d.state.enhanced, d.state.enhancedTime),
		way(MethodATAErase, Clear, "--security-erase", true, d.state.eraseTime),
	}
}

// erase sets the password that the command asks for and erases. Whatever comes of it, the drive is not left locked as long as it answers.
func (d *ataDrive) erase(ctx context.Context, flag string, takes time.Duration, tick func(float64)) (err error) {
	if err := d.hdparm(ctx, ataCommand, "--security-set-pass"); err != nil {
		return fmt.Errorf("set the drive's password: %w", err)
	}
	limit := ataUnknownLength
	if takes > 0 {
		limit = 2*takes + ataCommand
	}
	err = ticking(ctx, takes, tick, func() error { return d.hdparm(ctx, limit, flag) })
	if err != nil {
		err = fmt.Errorf("erase the drive: %w", err)
	}
	after := context.WithoutCancel(ctx) // bounded by the commands' own limits
	if readErr := d.read(after); readErr != nil {
		return errors.Join(err, readErr)
	}
	if d.state.enabled {
		// An erasure that was carried out takes the password away (ACS-3, section 7.45).
		if err == nil {
			err = errors.New("the drive said that it was done and still has its password")
		}
		if disableErr := d.hdparm(after, ataCommand, "--security-disable"); disableErr != nil {
			err = errors.Join(err, fmt.Errorf("take the drive's password away: %w", disableErr))
		}
	}
	return err
}

func (d *ataDrive) hdparm(ctx context.Context, limit time.Duration, flag string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := run.Output(ctx, d.runner, []string{"hdparm", "--user-master", "u", flag, ataPassword, d.dev})
	return err
}
