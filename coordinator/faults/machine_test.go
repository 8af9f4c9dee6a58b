package faults

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bloomery/coordinator/faults/history"
	"bloomery/lab/bmc"
	"bloomery/lab/vswitch"
)

const (
	// talkEvery is how often a machine that is on says something, so that the switch knows its address.
	talkEvery = 150 * time.Millisecond
	// firmwarePatience is how long firmware asks for an address before it gives up.
	firmwarePatience = 20 * time.Second
)

// machine is a server: a BMC, a port of the switch, and what runs on it.
type machine struct {
	w    *world
	name string
	uuid string
	mac  net.HardwareAddr
	bmc  *bmc.Server
	// socket is where the switch waits for the machine's cable.
	socket string
	on     atomic.Bool

	life   context.CancelFunc
	living sync.WaitGroup
	// works says that the machine has one job after the other; the others report. reporter is set until the first agent of one of these has enrolled.
	works    bool
	reporter atomic.Bool

	mu     sync.Mutex
	vendor []byte
}

// rackMachine puts a machine's BMC and port into the rack.
func (w *world) rackMachine(i int) (*machine, error) {
	m := &machine{
		w: w, name: fmt.Sprintf("m%d", i), uuid: fmt.Sprintf("11111111-2222-3333-4444-%012x", i),
		mac: net.HardwareAddr{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)},
	}
	m.socket = filepath.Join(w.dir, m.name+".sock")
	if err := w.devices.sw.AddSocketPort(m.name, m.socket, vswitch.Access(provisioningVLAN)); err != nil {
		return nil, err
	}
	supply := &powerSupply{m: m}
	var err error
	m.bmc, err = bmc.New(bmc.Config{Address: netip.AddrPortFrom(m.controller(i), 623), Username: username, Password: password, Power: supply, BootSet: supply.bootSet})
	if err != nil {
		return nil, err
	}
	conn, err := new(net.ListenConfig).ListenPacket(w.ctx, "udp4", netip.AddrPortFrom(m.controller(i), 623).String())
	if err != nil {
		return nil, err
	}
	w.running.Go(func() {
		if err := m.bmc.Serve(w.ctx, conn); err != nil {
			w.t.Errorf("BMC of %s: %v", m.name, err)
		}
	})
	w.running.Go(func() {
		<-w.ctx.Done()
		m.living.Wait()
	})
	return m, nil
}

func (m *machine) controller(i int) netip.Addr {
	a := controllers.Addr().As4()
	a[3] = byte(i)
	return netip.AddrFrom4(a)
}

// powerOn and powerOff are called by the power supply, one at a time.
func (m *machine) powerOn() {
	ctx, cancel := context.WithCancel(m.w.ctx)
	m.life = cancel
	m.on.Store(true)
	boot := m.bmc.Flags.Take()
	m.living.Go(func() { m.talk(ctx) })
	m.living.Go(func() { m.boot(ctx, boot) })
}

func (m *machine) powerOff() {
	m.life()
	m.on.Store(false)
}

// talk has the machine's cable plugged in, and broadcasts now and then, until the power goes.
func (m *machine) talk(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", m.socket)
		if err != nil {
			pause(ctx, talkEvery)
			continue
		}
		for ctx.Err() == nil {
			if _, err := conn.Write(broadcast(m.mac)); err != nil || !pause(ctx, talkEvery) {
				break
			}
		}
		_ = conn.Close() // nothing is read from it
	}
}

// broadcast is a frame as QEMU's stream sockets carry it: length, then the frame with a local experimental EtherType (IEEE 802).
func broadcast(from net.HardwareAddr) []byte {
	const size = 60
	b := binary.BigEndian.AppendUint32(nil, size)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, from...)
	b = append(b, 0x88, 0xb5)
	return append(b, make([]byte, size-14)...)
}

// boot is what the firmware does: the network if the BMC asks for it, else the disk.
func (m *machine) boot(ctx context.Context, from bmc.Boot) {
	if from == bmc.BootNetwork {
		asking, cancel := context.WithTimeout(ctx, firmwarePatience)
		address, err := m.w.relay.lease(asking, m)
		cancel()
		if err != nil {
			return // an empty disk, or one that nobody asked to be started
		}
		a, err := newAgent(m, address)
		if err != nil {
			m.w.note("agent of %s: %v", m.name, err)
			return
		}
		defer a.close()
		if !a.run(ctx) {
			return
		}
	}
	m.runInstalled(ctx)
}

var tokenPattern = regexp.MustCompile(`/phone-home/([A-Za-z0-9_-]{43})`)

// runInstalled is the installed system's first boot: it phones home from the customer's network until somebody has heard it.
func (m *machine) runInstalled(ctx context.Context) {
	m.mu.Lock()
	token := tokenPattern.FindSubmatch(m.vendor)
	m.mu.Unlock()
	if token == nil {
		return
	}
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: m.customerAddress().AsSlice()}}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	for n := 0; pause(ctx, 200*time.Millisecond); n++ {
		port, _ := m.w.devices.sw.Snapshot().Port(m.name)
		if port.VLAN.Access != customerVLAN {
			continue // the wire leads elsewhere
		}
		to := netip.AddrPortFrom(m.w.nodes[n%len(m.w.nodes)].address, phoneHomePort)
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+to.String()+"/phone-home/"+string(token[1]), strings.NewReader("instance_id=x"))
		if err != nil {
			m.w.note("phone home: %v", err)
			return
		}
		response, err := client.Do(request)
		if err != nil {
			continue
		}
		_ = response.Body.Close() // empty
		if response.StatusCode == http.StatusNoContent {
			m.w.record.add(history.Entry{Kind: history.Heard, Machine: m.name, Node: m.w.nodeAt(to.Addr())})
		}
		// Not found: an earlier call was heard whose answer was lost, or the job is over.
		if response.StatusCode == http.StatusNoContent || response.StatusCode == http.StatusNotFound {
			return
		}
	}
}

// customerAddress is one in the customer's network; the check is for the network only.
func (m *machine) customerAddress() netip.Addr {
	a := customer.Addr().As4()
	a[2], a[3] = 1, m.mac[5]
	return netip.AddrFrom4(a)
}

// installed keeps what the agent wrote onto the disk, wiped that it is empty.
func (m *machine) installed(vendor []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.vendor = vendor
}

var errNoLease = errors.New("no coordinator leases an address")
