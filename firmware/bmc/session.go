package bmc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"

	"bloomery/internal/fence"
)

const (
	// defaultPort is IANA's for RMCP (asf-rmcp).
	defaultPort = 623
	maxUsername = 16 // bytes, IPMI 2.0 section 22.28
	maxPassword = 20 // bytes, IPMI 2.0 section 22.30
	// resend is how long one datagram is waited for before it is sent again.
	resend  = time.Second
	resends = 3
)

// target is a BMC's address, taken apart.
type target struct {
	host string
	port int
}

// String is "host:port".
func (t target) String() string { return net.JoinHostPort(t.host, strconv.Itoa(t.port)) }

func parseOptions(o Options) (target, error) {
	host, portText, err := net.SplitHostPort(o.Address)
	if err != nil {
		host, portText = strings.Trim(o.Address, "[]"), strconv.Itoa(defaultPort)
	}
	port, err := strconv.Atoi(portText)
	if host == "" || err != nil || port < 1 || port > 65535 || strings.ContainsAny(host, " /\x00") {
		return target{}, fmt.Errorf("BMC address %q: want host:port, e.g. 10.65.0.11:623", o.Address)
	}
	t := target{host: host, port: port}
	switch {
	case len(o.Username) > maxUsername:
		return t, fmt.Errorf("BMC %s: username has %d bytes, IPMI allows %d", t, len(o.Username), maxUsername)
	case len(o.Password) > maxPassword:
		return t, fmt.Errorf("BMC %s: password has %d bytes, IPMI allows %d", t, len(o.Password), maxPassword)
	case o.CipherSuite != 0 && o.CipherSuite != 3 && o.CipherSuite != 17:
		return t, fmt.Errorf("BMC %s: cipher suite %d: use 17, 3, or 0 for the better one the BMC has", t, o.CipherSuite)
	}
	return t, nil
}

// connect opens a session with the best cipher suite that the BMC takes. A suite that once worked is
// used again and never downgraded; a wrong password is not tried with the next suite, as BMCs lock
// accounts after a few failures.
func connect(ctx context.Context, t target, o Options, known types.CipherSuiteID, log *slog.Logger) (*client.Client, types.CipherSuiteID, error) {
	suites := []types.CipherSuiteID{types.CipherSuiteID17, types.CipherSuiteID3}
	switch {
	case known != 0:
		suites = []types.CipherSuiteID{known}
	case o.CipherSuite != 0:
		suites = []types.CipherSuiteID{types.CipherSuiteID(o.CipherSuite)}
	}
	var last error
	for i, suite := range suites {
		if i > 0 {
			log.Warn("BMC refused cipher suite 17, trying 3 (SHA-1)", "error", last)
		}
		c, err := connectWith(ctx, t, o, suite)
		if err == nil {
			return c, suite, nil
		}
		last = err
		if !suiteRefused(err) {
			break
		}
	}
	return nil, 0, last
}

func connectWith(ctx context.Context, t target, o Options, suite types.CipherSuiteID) (*client.Client, error) {
	host := t.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // the library pastes host and port together
	}
	c, err := client.NewClient(host, t.port, o.Username, o.Password)
	if err != nil {
		return nil, err
	}
	c.WithCipherSuiteID(suite).WithTimeout(resend).WithRetry(resends).WithMaxPrivilegeLevel(types.PrivilegeLevelAdministrator)
	c.WithUDPProxy(fencedDialer{ctx}) // resends as well ask the fence before each datagram
	if err := c.Connect(ctx); err != nil {
		closeQuietly(c)
		return nil, err
	}
	return c, nil
}

// fencedDialer opens the library's socket so that it sends only what the context's fence allows.
type fencedDialer struct{ ctx context.Context }

// Dial implements proxy.Dialer.
func (d fencedDialer) Dial(network, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	return fence.Conn(d.ctx, conn), nil
}

// closeQuietly frees the socket of a session that is given up; its BMC is not waited for.
func closeQuietly(c *client.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.WithRetry(0).Close(ctx) // the session is lost either way and the BMC times it out
}

// explain turns the library's errors into ours. The library joins the errors of a handshake as text
// (interface_lan.go, Connect20), so those are told by their wording.
func (d *ipmiDriver) explain(ctx context.Context, err error) error {
	var netErr net.Error
	text := err.Error()
	switch {
	case errors.Is(err, ErrPoweredOff):
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case unauthorized(text):
		return ErrUnauthorized
	case suiteRefused(err):
		return fmt.Errorf("the BMC takes neither cipher suite 17 nor 3 as asked: %w", err)
	case strings.Contains(text, "connection refused"):
		return fmt.Errorf("nothing listens there: %w", ErrNoAnswer)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout(),
		strings.Contains(text, "before deadline"), strings.Contains(text, "timed out"), strings.Contains(text, "i/o timeout"):
		return fmt.Errorf("%w within %s", ErrNoAnswer, d.opts.Timeout)
	}
	return err
}

func unauthorized(text string) bool {
	for _, s := range []string{
		"anonymous login is not enabled",
		client.ErrRAKPAuthentication.Error(),
		types.NewRmcpStatusError(types.RmcpStatusCodeUnauthorizedName).Error(),
		types.NewRmcpStatusError(types.RmcpStatusCodeInvalidNameLength).Error(),
		types.NewRmcpStatusError(types.RmcpStatusCodeUnauthorizedRoleOfPriLevel).Error(),
		types.NewRmcpStatusError(types.RmcpStatusCodeInvalidIntegrityCheckValue).Error(),
	} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

func suiteRefused(err error) bool {
	for _, code := range []types.RmcpStatusCode{
		types.RmcpStatusCodeNoCipherSuiteMatch, types.RmcpStatusCodeInvalidAuthAlg, types.RmcpStatusCodeInvalidIntegrityAlg,
		types.RmcpStatusCodeInvalidConfidentAlg, types.RmcpStatusCodeNoMatchingAuthPayload, types.RmcpStatusCodeNoMatchingIntegrityPayload,
	} {
		if strings.Contains(err.Error(), types.NewRmcpStatusError(code).Error()) {
			return true
		}
	}
	return false
}

func isResponse(err error) bool {
	_, ok := types.IsResponseError(err)
	return ok
}

// retryable: no answer came, so another attempt may get one. A BMC that answered has decided,
// unless it says that it is busy (C0h, IPMI 2.0 table 5-2).
func retryable(err error) bool {
	if errors.Is(err, ErrNoAnswer) {
		return true
	}
	re, ok := types.IsResponseError(err)
	return ok && re.CompletionCode() == types.CodeNodeBusy
}
