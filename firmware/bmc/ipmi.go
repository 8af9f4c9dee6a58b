package bmc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
)

const (
	// attemptTimeout bounds one attempt at a command, the library's own resends included.
	attemptTimeout = 5 * time.Second
	// attempts bounds how often a command is tried, each time in a new session.
	attempts = 3
	// backoffStart doubles after each attempt.
	backoffStart = 250 * time.Millisecond
	// closeTimeout bounds the farewell to a BMC that may be gone.
	closeTimeout = time.Second
)

// Options say how to reach a BMC.
type Options struct {
	// Address is "host:port"; the port may be left out (623).
	Address string
	// Username has at most 16 bytes, Password at most 20 (IPMI 2.0 section 22.28 and 22.30).
	Username, Password string
	// CipherSuite is 17 (SHA-256, AES) or 3 (SHA-1, AES). 0 tries 17 and then 3.
	CipherSuite int
	// Timeout bounds one attempt; 0 means 5 s. A call makes at most three.
	Timeout time.Duration
	// Logger gets retries and downgrades, never secrets. nil discards them.
	Logger *slog.Logger
}

// ipmiDriver keeps one RMCP+ session and renews it when it breaks.
type ipmiDriver struct {
	opts   Options
	target target
	log    *slog.Logger

	mu     sync.Mutex
	conn   *client.Client
	suite  types.CipherSuiteID // the one that worked, 0 before
	closed bool
}

// DialIPMI opens a session with the BMC and returns its driver. It fails with ErrUnauthorized,
// ErrNoAnswer or what the BMC said. A session sends no packet
// once the fence of the context that it was opened under is down (internal/fence).
func DialIPMI(ctx context.Context, opts Options) (Driver, error) {
	t, err := parseOptions(opts)
	if err != nil {
		return nil, err
	}
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if opts.Timeout <= 0 {
		opts.Timeout = attemptTimeout
	}
	d := &ipmiDriver{opts: opts, target: t, log: log.With("bmc", t.String())}
	if err := d.do(ctx, "opening a session", func(context.Context, *client.Client) error { return nil }); err != nil {
		return nil, err
	}
	return d, nil
}

// do runs one command, with a new session and a longer pause after each attempt that got no answer.
func (d *ipmiDriver) do(ctx context.Context, what string, f func(context.Context, *client.Client) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("BMC %s: %s: %w", d.target, what, ErrClosed)
	}
	pause := backoffStart
	for attempt := 1; ; attempt++ {
		err := d.attempt(ctx, f)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("BMC %s: %s: %w", d.target, what, d.explain(ctx, err))
		if attempt == attempts || !retryable(err) || ctx.Err() != nil {
			return err
		}
		d.log.Warn("BMC command will be tried again", "command", what, "attempt", attempt, "pause", pause, "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause *= 2
	}
}

func (d *ipmiDriver) attempt(ctx context.Context, f func(context.Context, *client.Client) error) error {
	actx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	if d.conn == nil {
		c, suite, err := connect(actx, d.target, d.opts, d.suite, d.log)
		if err != nil {
			return err
		}
		d.conn, d.suite = c, suite
	}
	err := f(actx, d.conn)
	if err != nil {
		if _, answered := types.IsResponseError(err); !answered && !errors.Is(err, ErrPoweredOff) {
			d.drop()
		}
	}
	return err
}

// drop gives up a session whose state is in doubt; the BMC times it out if it still has it.
func (d *ipmiDriver) drop() {
	c := d.conn
	d.conn = nil
	if c != nil {
		closeQuietly(c)
	}
}

// PowerStatus implements Driver by Get Chassis Status (IPMI 2.0 section 28.2).
func (d *ipmiDriver) PowerStatus(ctx context.Context) (on bool, err error) {
	err = d.do(ctx, "reading the power status", func(ctx context.Context, c *client.Client) error {
		on, err = powerStatus(ctx, c)
		return err
	})
	return on, err
}

func powerStatus(ctx context.Context, c *client.Client) (bool, error) {
	st, err := c.GetChassisStatus(ctx)
	if err != nil {
		return false, err
	}
	return st.PowerIsOn, nil
}

// PowerOn implements Driver by Chassis Control (IPMI 2.0 section 28.3).
func (d *ipmiDriver) PowerOn(ctx context.Context) error {
	return d.do(ctx, "switching on", func(ctx context.Context, c *client.Client) error {
		return setPower(ctx, c, true)
	})
}

// PowerOff implements Driver by Chassis Control.
func (d *ipmiDriver) PowerOff(ctx context.Context) error {
	return d.do(ctx, "switching off", func(ctx context.Context, c *client.Client) error {
		return setPower(ctx, c, false)
	})
}

// setPower asks first: several BMCs answer D5h to "on" for a machine that is on.
func setPower(ctx context.Context, c *client.Client, want bool) error {
	on, err := powerStatus(ctx, c)
	if err != nil || on == want {
		return err
	}
	control := chassis.ChassisControlPowerDown
	if want {
		control = chassis.ChassisControlPowerUp
	}
	_, err = c.ChassisControl(ctx, control)
	return err
}

// Reset implements Driver by Chassis Control. An answer that is lost makes it reset twice.
func (d *ipmiDriver) Reset(ctx context.Context) error {
	return d.do(ctx, "resetting", func(ctx context.Context, c *client.Client) error {
		on, err := powerStatus(ctx, c)
		if err != nil {
			return err
		}
		if !on {
			return ErrPoweredOff
		}
		_, err = c.ChassisControl(ctx, chassis.ChassisControlHardReset)
		return err
	})
}

// DeviceID implements Driver by Get Device ID (IPMI 2.0 section 20.1).
func (d *ipmiDriver) DeviceID(ctx context.Context) (info DeviceInfo, err error) {
	err = d.do(ctx, "reading the device id", func(ctx context.Context, c *client.Client) error {
		res, err := c.GetDeviceID(ctx)
		if err != nil {
			return err
		}
		info = deviceInfo(res)
		return nil
	})
	return info, err
}

// Close implements Driver.
func (d *ipmiDriver) Close(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	c := d.conn
	d.conn = nil
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := c.WithRetry(0).Close(ctx); err != nil {
		return fmt.Errorf("BMC %s: closing the session: %w", d.target, err)
	}
	return nil
}
