package netboottest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Storm is many machines that are switched on at the same moment.
type Storm struct {
	MACs []net.HardwareAddr
	// Fetch gets the file of an acknowledgement's boot URL, from its address.
	Fetch func(ctx context.Context, ack *dhcpv4.DHCPv4) error
}

// Outcome is what became of a storm.
type Outcome struct {
	// Lost are the machines that did not boot, Again how often one had to ask again for want of an answer.
	Lost, Again int
	// P50 and P99 are from DISCOVER to the whole file; Took is the whole storm.
	P50, P99, Took time.Duration
	// Addresses are the leases by MAC address, Errors what the lost ones saw.
	Addresses map[string]string
	Errors    []error
}

// Run lets the storm loose on a wire.
func (s Storm) Run(ctx context.Context, w *Wire) Outcome {
	var mu sync.Mutex
	var wg sync.WaitGroup
	o := Outcome{Addresses: map[string]string{}}
	var took []time.Duration
	begin := time.Now()
	for _, mac := range s.MACs {
		client := w.Client(mac)
		wg.Go(func() {
			start := time.Now()
			ack, again, err := client.Boot(ctx)
			if err == nil {
				err = s.Fetch(ctx, ack)
			}
			mu.Lock()
			defer mu.Unlock()
			o.Again += again
			if err != nil {
				o.Lost++
				o.Errors = append(o.Errors, fmt.Errorf("%s: %w", mac, err))
				return
			}
			took = append(took, time.Since(start))
			o.Addresses[mac.String()] = ack.YourIPAddr.String()
		})
	}
	wg.Wait()
	o.Took = time.Since(begin)
	slices.Sort(took)
	if n := len(took); n > 0 {
		o.P50, o.P99 = took[n/2], took[n*99/100]
	}
	return o
}
