// Package bmc is the management controller of a lab machine: IPMI 2.0 over RMCP+ for the coordinator,
// and the same controller inside the machine over QEMU's ipmi-bmc-extern.
package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/types"
	"github.com/bougou/go-ipmi/pkg/vmproto"
)

const (
	anonymousUser = 1 // slot of the user without a name, IPMI 2.0 section 6.9.1
	adminUser     = 2
	lanChannel    = 1
)

// Config is a BMC.
type Config struct {
	// Address is what the BMC says its LAN address is.
	Address            netip.AddrPort
	Username, Password string
	// CipherSuites are the RMCP+ suites on offer; nil means 17 and 3. Suite 0 (no authentication) is refused.
	CipherSuites []int
	GUID         [16]byte
	Power        Power
	// BootSet is told of each boot override that is set; nil means nobody is.
	BootSet func(context.Context, Boot)
}

// Server is a running BMC.
type Server struct {
	Flags Flags

	bmc   *bmc.BMC
	reg   *handlers.Registry
	stuck atomic.Bool
}

// New makes a BMC; Serve and ServeMachine make it answer.
func New(c Config) (*Server, error) {
	if c.Username == "" || c.Password == "" {
		return nil, errors.New("BMC: username and password must not be empty")
	}
	ip, err := ipConfig(c.Address)
	if err != nil {
		return nil, err
	}
	suites, err := cipherSuites(c.CipherSuites)
	if err != nil {
		return nil, err
	}
	s := &Server{}
	info := bmc.DeviceInfo{
		DeviceID: 32, DeviceRevision: 1, FirmwareMajor: 1, FirmwareMinor: 0, IPMIVersion: 0x02,
		ManufacturerID: 7154, ProductID: 1, AdditionalDeviceSupport: 0x80, // chassis device only
	}
	s.bmc = bmc.New(info, c.GUID, &hardware{power: c.Power, flags: &s.Flags, net: ip, bootSet: c.BootSet}, bmc.WithV15Disabled(), bmc.WithCipherSuites(suites))
	if err := s.bmc.Users.Update(anonymousUser, func(u *bmc.User) error { u.Enabled = false; return nil }); err != nil {
		return nil, fmt.Errorf("BMC: disabling the anonymous user: %w", err)
	}
	u, err := s.bmc.Users.Add(adminUser, c.Username)
	if err != nil {
		return nil, fmt.Errorf("BMC: adding user %s: %w", c.Username, err)
	}
	u.SetPassword([]byte(c.Password))
	u.Enabled = true
	u.ChannelAccess[lanChannel] = bmc.UserChannelAccess{MaxPrivilege: bmc.PrivilegeLevelAdministrator, Enabled: true}
	s.reg = registry()
	return s, nil
}

func cipherSuites(want []int) ([]types.CipherSuiteID, error) {
	if len(want) == 0 {
		return []types.CipherSuiteID{types.CipherSuiteID17, types.CipherSuiteID3}, nil
	}
	var out []types.CipherSuiteID
	for _, n := range want {
		if n != 3 && n != 17 {
			return nil, fmt.Errorf("BMC: cipher suite %d: only 3 and 17 are safe and supported", n)
		}
		out = append(out, types.CipherSuiteID(n))
	}
	return out, nil
}

// registry is go-ipmi's, but a reset of the BMC (IPMI 2.0 sections 20.2 and 20.3) leaves the machine
// alone, and the in-machine driver's housekeeping is answered (sections 22.1 to 22.3).
func registry() *handlers.Registry {
	r := handlers.NewRegistry()
	r.Use(withPeer)
	handlers.RegisterAllHandlers(r)
	done := func(data ...byte) handlers.HandlerFunc {
		return func(context.Context, *handlers.HandlerContext, []byte) ([]byte, types.CompletionCode, error) {
			return data, types.CodeOK, nil
		}
	}
	r.RegisterFunc(types.CommandColdReset, done())
	r.RegisterFunc(types.CommandWarmReset, done())
	r.RegisterFunc(types.CommandSetBMCGlobalEnables, done())
	r.RegisterFunc(types.CommandGetBMCGlobalEnables, done(0))
	r.RegisterFunc(types.CommandClearMessageFlags, done())
	r.RegisterFunc(types.CommandGetMessageFlags, done(0))
	return r
}

// SetStuck makes the BMC silent on the network, or lets it answer again.
func (s *Server) SetStuck(stuck bool) { s.stuck.Store(stuck) }

// Stuck reports what SetStuck said last.
func (s *Server) Stuck() bool { return s.stuck.Load() }

// Serve answers RMCP+ on the socket until the context ends, and closes it.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	srv := server.NewServer(s.bmc, &muffled{PacketConn: conn, stuck: &s.stuck}, server.WithHandlerRegistry(s.reg))
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { wg.Go(func() { _ = srv.Close() }) })
	defer wg.Wait()
	defer stop()
	err := srv.Serve(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeMachine answers the machine's own driver (QEMU's ipmi-bmc-extern) on a stream listener until
// the context ends.
func (s *Server) ServeMachine(ctx context.Context, l net.Listener) error {
	return vmproto.NewVMServer(s.bmc, vmproto.WithVMHandlerRegistry(s.reg)).Serve(ctx, l)
}

// muffled hears nothing while the BMC is stuck.
type muffled struct {
	net.PacketConn
	stuck *atomic.Bool
}

// ReadFrom implements transport.PacketConn.
func (m *muffled) ReadFrom(buf []byte) (int, net.Addr, error) {
	for {
		n, addr, err := m.PacketConn.ReadFrom(buf)
		if err != nil || !m.stuck.Load() {
			return n, addr, err
		}
	}
}
