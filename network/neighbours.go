package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/packet"
)

// etherTypeLLDP is 88-CC.
const etherTypeLLDP = 0x88cc

// Neighbours listens for one LLDP frame on each interface, all at the same time, until ctx ends (switches send every 30 s
// by default). The map holds the interfaces that heard one; the error is for those that could not listen.
func Neighbours(ctx context.Context, interfaces []string) (map[string]Neighbour, error) {
	found := make(map[string]Neighbour)
	var errs []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range interfaces {
		wg.Go(func() {
			n, ok, err := listen(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			if ok {
				found[name] = n
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("listen for LLDP on %s: %w", name, err))
			}
		})
	}
	wg.Wait()
	return found, errors.Join(errs...)
}

func listen(ctx context.Context, name string) (Neighbour, bool, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return Neighbour{}, false, err
	}
	conn, err := packet.Listen(ifi, packet.Datagram, etherTypeLLDP, nil)
	if err != nil {
		return Neighbour{}, false, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// The three group addresses of IEEE 802.1AB, clause 7.1; without them the NIC's filter drops the frames.
	for _, last := range []byte{0x0e, 0x03, 0x00} {
		if err := conn.JoinGroup(net.HardwareAddr{0x01, 0x80, 0xc2, 0x00, 0x00, last}); err != nil {
			return Neighbour{}, false, err
		}
	}
	buf := make([]byte, maxLLDP)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return Neighbour{}, false, nil
		}
		if err != nil {
			return Neighbour{}, false, err
		}
		a, _ := from.(*packet.Addr)
		if a == nil || a.HardwareAddr.String() == ifi.HardwareAddr.String() {
			continue // the machine's own, sent by some NICs' firmware
		}
		if neighbour, err := ParseLLDP(buf[:n]); err == nil {
			neighbour.Source = a.HardwareAddr
			return neighbour, true, nil
		}
	}
}
