package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// Client talks to a rack's supervisor.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the rack in a state directory. It connects with each call.
func NewClient(stateDir string) *Client {
	socket := layout{stateDir}.control()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("asking the rack: %w", err)
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, payload)
	if err != nil {
		return fmt.Errorf("asking the rack: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the rack's supervisor (is the rack up?): %w", err)
	}
	defer res.Body.Close()
	if err := failure(res); err != nil {
		return err
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(into); err != nil {
		return fmt.Errorf("asking the rack: reading the answer: %w", err)
	}
	return nil
}

// failure is the error that an answer carries.
func failure(res *http.Response) error {
	if res.StatusCode < 300 {
		return nil
	}
	var e struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&e); err != nil || e.Error == "" {
		return fmt.Errorf("asking the rack: it answered %s", res.Status)
	}
	return errors.New(e.Error)
}

// Status asks for everything the supervisor knows.
func (c *Client) Status(ctx context.Context) (st SupervisorStatus, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// Power does "on", "off", "reset" or "soft" (the power button) past the BMC.
func (c *Client) Power(ctx context.Context, machine, action string) error {
	return c.call(ctx, http.MethodPost, "/v1/machines/"+url.PathEscape(machine)+"/power", powerRequest{action}, &struct{}{})
}

// Fault makes something go wrong.
func (c *Client) Fault(ctx context.Context, f Fault) error {
	return c.call(ctx, http.MethodPost, "/v1/fault", f, &struct{}{})
}

// Stop ends the supervisor in good order; it does not wait.
func (c *Client) Stop(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/stop", nil, &struct{}{})
}

// Capture copies a switch port's frames to w in pcap format until the context ends.
func (c *Client) Capture(ctx context.Context, port string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lab/v1/ports/"+port, nil)
	if err != nil {
		return fmt.Errorf("capturing on %s: %w", port, err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("capturing on %s: %w", port, err)
	}
	defer res.Body.Close()
	if err := failure(res); err != nil {
		return fmt.Errorf("capturing on %s: %w", port, err)
	}
	if _, err := io.Copy(w, res.Body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("capturing on %s: %w", port, err)
	}
	return nil
}

// Console connects to a machine's serial port. It begins with the recent past and goes on over the
// machine's power cycles; Close ends it.
func (c *Client) Console(ctx context.Context, machine string) (io.ReadWriteCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lab/v1/machines/"+url.PathEscape(machine)+"/console", nil)
	if err != nil {
		return nil, fmt.Errorf("console of %s: %w", machine, err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "console")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("console of %s: %w", machine, err)
	}
	if rw, ok := res.Body.(io.ReadWriteCloser); ok && res.StatusCode == http.StatusSwitchingProtocols {
		return rw, nil
	}
	defer res.Body.Close()
	return nil, fmt.Errorf("console of %s: %w", machine, errors.Join(failure(res), errors.New("the connection was not handed over")))
}
