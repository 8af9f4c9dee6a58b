package netboottest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Client is the firmware of one machine that wants UEFI HTTP boot.
type Client struct {
	wire  *Wire
	mac   net.HardwareAddr
	inbox chan *dhcpv4.DHCPv4
}

// Client plugs a machine in.
func (w *Wire) Client(mac net.HardwareAddr) *Client {
	c := &Client{wire: w, mac: mac, inbox: make(chan *dhcpv4.DHCPv4, 64)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients[mac.String()] = c.inbox
	return c
}

// packet makes a client's message as EDK2 does for HTTP boot on amd64.
func (c *Client) packet(kind dhcpv4.MessageType, options ...dhcpv4.Option) (*dhcpv4.DHCPv4, error) {
	p, err := dhcpv4.New(dhcpv4.WithHwAddr(c.mac), dhcpv4.WithMessageType(kind))
	if err != nil {
		return nil, err
	}
	p.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003001"))
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 16}))
	for _, o := range options {
		p.UpdateOption(o)
	}
	return p, nil
}

// Discover asks and returns the offers that came, at most as many as wanted, until the context ends.
func (c *Client) Discover(ctx context.Context, want int) ([]*dhcpv4.DHCPv4, error) {
	p, err := c.packet(dhcpv4.MessageTypeDiscover)
	if err != nil {
		return nil, err
	}
	return c.exchange(ctx, p, dhcpv4.MessageTypeOffer, want)
}

// Request takes an offer, and returns the acknowledgements that came.
func (c *Client) Request(ctx context.Context, offer *dhcpv4.DHCPv4, want int) ([]*dhcpv4.DHCPv4, error) {
	p, err := c.packet(dhcpv4.MessageTypeRequest, dhcpv4.OptRequestedIPAddress(offer.YourIPAddr), dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))
	if err != nil {
		return nil, err
	}
	return c.exchange(ctx, p, dhcpv4.MessageTypeAck, want)
}

// Rebind asks any server to prolong a lease (RFC 2131, section 4.4.5): the one that gave it does not answer.
func (c *Client) Rebind(ctx context.Context, address net.IP, want int) ([]*dhcpv4.DHCPv4, error) {
	p, err := c.packet(dhcpv4.MessageTypeRequest)
	if err != nil {
		return nil, err
	}
	p.ClientIPAddr = address
	return c.exchange(ctx, p, dhcpv4.MessageTypeAck, want)
}

func (c *Client) exchange(ctx context.Context, p *dhcpv4.DHCPv4, kind dhcpv4.MessageType, want int) ([]*dhcpv4.DHCPv4, error) {
	c.wire.send(p.ToBytes())
	var answers []*dhcpv4.DHCPv4
	for len(answers) < want {
		select {
		case <-ctx.Done():
			return answers, nil
		case a := <-c.inbox:
			if a.TransactionID != p.TransactionID {
				continue // late, of an earlier exchange
			}
			if a.MessageType() != kind {
				return answers, fmt.Errorf("answer to %s is %s, want %s", p.MessageType(), a.MessageType(), kind)
			}
			answers = append(answers, a)
		}
	}
	return answers, nil
}

// clientPatience is after how long without an answer a client asks again (RFC 2131, section 4.1).
const clientPatience = 4 * time.Second

// Boot goes from DISCOVER to the acknowledgement as firmware does: the first offer is taken; without an answer it begins again. It returns the
// acknowledgement and how often it had to begin again.
func (c *Client) Boot(ctx context.Context) (*dhcpv4.DHCPv4, int, error) {
	const tries = 4
	for again := range tries {
		attempt, cancel := context.WithTimeout(ctx, clientPatience)
		ack, err := c.bootOnce(attempt)
		cancel()
		if err != nil || ack != nil {
			return ack, again, err
		}
	}
	return nil, tries, errors.New("no server answers")
}

func (c *Client) bootOnce(ctx context.Context) (*dhcpv4.DHCPv4, error) {
	offers, err := c.Discover(ctx, 1)
	if err != nil || len(offers) == 0 {
		return nil, err
	}
	acks, err := c.Request(ctx, offers[0], 1)
	if err != nil || len(acks) == 0 {
		return nil, err
	}
	return acks[0], nil
}
