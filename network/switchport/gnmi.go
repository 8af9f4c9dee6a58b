package switchport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"bloomery/internal/fence"
)

const (
	defaultTimeout = 10 * time.Second
	maxMessage     = 32 << 20 // a full table of 100,000 addresses is about 25 MB of JSON
)

// Options say how to reach a switch by gNMI.
type Options struct {
	Address    string         // host:port; 9339 is gNMI's (IANA)
	CA         *x509.CertPool // whom to believe; nil is an error, the system's authorities do not sign for switches
	ServerName string         // the name in the switch's certificate; "": the host of Address
	Username   string
	Password   string
	Timeout    time.Duration // of each request; 0: 10 s
}

// GNMI is a Driver for switches that speak gNMI with the OpenConfig models interfaces, vlan and network-instance.
type GNMI struct {
	conn    *grpc.ClientConn
	client  gpb.GNMIClient
	address string
	timeout time.Duration
}

var _ Driver = (*GNMI)(nil)

// DialGNMI connects by TLS, gives the user name and password as gRPC metadata (gNMI authentication specification) and checks
// that the switch can speak JSON_IETF. The driver sends nothing once the context's fence is down (internal/fence).
func DialGNMI(ctx context.Context, o Options) (*GNMI, error) {
	if o.Address == "" {
		return nil, errors.New("dial switch: address: empty, want host:port")
	}
	if o.CA == nil {
		return nil, fmt.Errorf("dial switch %s: ca: none given, want the authority that signed the switch's certificate", o.Address)
	}
	if o.Username == "" || o.Password == "" {
		return nil, fmt.Errorf("dial switch %s: username and password: want both", o.Address)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	conn, err := grpc.NewClient(o.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: o.CA, ServerName: o.ServerName,
		})),
		grpc.WithPerRPCCredentials(login{o.Username, o.Password}),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(dial context.Context, address string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(dial, "tcp", address)
			if err != nil {
				return nil, err
			}
			return fence.Conn(ctx, c), nil
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(1<<20)),
	)
	if err != nil {
		return nil, fmt.Errorf("dial switch %s: %w", o.Address, err)
	}
	g := &GNMI{conn: conn, client: gpb.NewGNMIClient(conn), address: o.Address, timeout: o.Timeout}
	if err := g.checkCapabilities(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return g, nil
}

func (g *GNMI) checkCapabilities(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	caps, err := g.client.Capabilities(ctx, &gpb.CapabilityRequest{})
	if err != nil {
		return fmt.Errorf("ask switch %s for its capabilities: %w", g.address, err)
	}
	if !slices.Contains(caps.GetSupportedEncodings(), gpb.Encoding_JSON_IETF) {
		return fmt.Errorf("switch %s does not speak JSON_IETF, only %v", g.address, caps.GetSupportedEncodings())
	}
	return nil
}

// Port implements Driver with four Gets: VLAN configuration, interface state, Ethernet state (which a switch may not have), and
// the forwarding table.
func (g *GNMI) Port(ctx context.Context, port string) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	st := State{Port: port}
	fail := func(what string, err error) (State, error) {
		return State{}, fmt.Errorf("switch %s: port %s: %s: %w", g.address, port, what, err)
	}

	iface, err := g.get(ctx, interfacePath(port, "state"))
	if err != nil {
		return fail("read state", err)
	}
	if st.LinkUp, err = decodeLinkUp(iface); err != nil {
		return fail("read state", err)
	}
	vlan, err := g.get(ctx, interfacePath(port, "ethernet", "switched-vlan", "config"))
	if err != nil && !errors.Is(err, ErrNoPort) {
		return fail("read VLAN configuration", err)
	}
	if err == nil { // a routed port has no such container: its mode stays empty
		if st.Mode, st.AccessVLAN, err = decodeSwitchedVLAN(vlan); err != nil {
			return fail("read VLAN configuration", err)
		}
	}
	ether, err := g.get(ctx, interfacePath(port, "ethernet", "state"))
	switch {
	case err == nil:
		if st.SpeedMbps, err = decodeSpeed(ether); err != nil {
			return fail("read Ethernet state", err)
		}
	case !errors.Is(err, ErrNoPort) && status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.Unimplemented:
		return fail("read Ethernet state", err)
	}
	table, err := g.get(ctx, fdbPath())
	// An empty table does not exist in some switches' trees. The guard then sees no address, which refuses.
	if err != nil && !errors.Is(err, ErrNoPort) {
		return fail("read forwarding table", err)
	}
	if err == nil {
		if st.MACs, err = decodeFDB(table, port); err != nil {
			return fail("read forwarding table", err)
		}
	}
	return st, nil
}

// SetAccessVLAN implements Driver.
func (g *GNMI) SetAccessVLAN(ctx context.Context, port string, vlan uint16) error {
	if err := checkVLAN(vlan); err != nil {
		return fmt.Errorf("switch %s: port %s: %w", g.address, port, err)
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	// RFC 7951 section 4: the outermost names carry their module's.
	value := fmt.Sprintf(`{"openconfig-vlan:interface-mode":"ACCESS","openconfig-vlan:access-vlan":%d}`, vlan)
	_, err := g.client.Set(ctx, &gpb.SetRequest{Update: []*gpb.Update{{
		Path: interfacePath(port, "ethernet", "switched-vlan", "config"),
		Val:  &gpb.TypedValue{Value: &gpb.TypedValue_JsonIetfVal{JsonIetfVal: []byte(value)}},
	}}})
	if err != nil {
		return fmt.Errorf("switch %s: port %s: set access VLAN %d: %w", g.address, port, vlan, noPort(err))
	}
	return nil
}

// Close implements Driver.
func (g *GNMI) Close() error {
	if err := g.conn.Close(); err != nil {
		return fmt.Errorf("close switch %s: %w", g.address, err)
	}
	return nil
}

func (g *GNMI) get(ctx context.Context, path *gpb.Path) ([]*gpb.Notification, error) {
	res, err := g.client.Get(ctx, &gpb.GetRequest{Path: []*gpb.Path{path}, Encoding: gpb.Encoding_JSON_IETF})
	if err != nil {
		return nil, noPort(err)
	}
	return res.GetNotification(), nil
}

// noPort makes NotFound (gNMI specification section 3.3.4) recognisable without gRPC.
func noPort(err error) error {
	if status.Code(err) == codes.NotFound {
		return fmt.Errorf("%w: %w", ErrNoPort, err)
	}
	return err
}

func interfacePath(port string, rest ...string) *gpb.Path {
	p := &gpb.Path{Elem: []*gpb.PathElem{{Name: "interfaces"}, {Name: "interface", Key: map[string]string{"name": port}}}}
	for _, name := range rest {
		p.Elem = append(p.Elem, &gpb.PathElem{Name: name})
	}
	return p
}

func fdbPath() *gpb.Path {
	p := &gpb.Path{Elem: []*gpb.PathElem{{Name: "network-instances"}, {Name: "network-instance", Key: map[string]string{"name": "default"}}}}
	for _, name := range strings.Split("fdb/mac-table/entries/entry", "/") {
		p.Elem = append(p.Elem, &gpb.PathElem{Name: name})
	}
	return p
}

// login is the user name and password that go with each request; it refuses to travel without TLS.
type login struct{ username, password string }

func (l login) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"username": l.username, "password": l.password}, nil
}

func (login) RequireTransportSecurity() bool { return true }
