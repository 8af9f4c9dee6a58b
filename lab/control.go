package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"bloomery/lab/vswitch"
)

// maxControlBody bounds a request to the control socket.
const maxControlBody = 64 << 10

// MachineStatus is a machine at one moment.
type MachineStatus struct {
	Name       string    `json:"name"`
	On         bool      `json:"on"`
	Starts     int       `json:"starts"`
	Since      time.Time `json:"since,omitzero"`
	PID        int       `json:"pid,omitempty"`
	NextBoot   string    `json:"next_boot"`
	BMC        string    `json:"bmc"`
	BMCStuck   bool      `json:"bmc_stuck,omitempty"`
	Ports      []string  `json:"ports"`
	MACs       []string  `json:"macs"`
	DiskSerial []string  `json:"disk_serials"`
	// PulledDisks are the serials of those that were taken out.
	PulledDisks []string `json:"pulled_disks,omitempty"`
	TPM         bool     `json:"tpm,omitempty"`
	UUID        string   `json:"uuid"`
}

// SupervisorStatus is what the supervisor says of its rack.
type SupervisorStatus struct {
	Rack     string          `json:"rack"`
	Accel    string          `json:"accel"`
	Started  time.Time       `json:"started"`
	Machines []MachineStatus `json:"machines"`
	Switch   vswitch.Status  `json:"switch"`
}

// powerRequest is the body of POST /v1/machines/{name}/power.
type powerRequest struct {
	Action string `json:"action"`
}

// Fault is something that goes wrong on demand. Kind says which fields matter:
//
//	link-down, link-up          Machine, NIC: the cable is pulled at the machine, also over power cycles
//	port-down, port-up          Port: the cable is pulled at the switch
//	swap-ports                  Port, OtherPort: cables are exchanged; again undoes it
//	loss                        Port, Drop, Duplicate: probabilities from 0 to 1
//	pull-plug                   Machine: QEMU is killed; the BMC stays on
//	smart-warning               Machine, Disk, Bits: NVMe Critical Warning; 0 takes it away
//	slow-disk                   Machine, Disk, BytesPerSecond; 0 takes it away
//	pull-disk                   Machine, Serial: the disk is taken out, at once and over power cycles
//	insert-disk                 Machine, Serial: it is put in again, which the machine sees when it starts next
//	bmc-stuck, bmc-ok           Machine: the BMC no longer answers, or does again
type Fault struct {
	Kind           string  `json:"kind"`
	Machine        string  `json:"machine,omitempty"`
	NIC            int     `json:"nic,omitempty"`
	Disk           int     `json:"disk,omitempty"`
	Serial         string  `json:"serial,omitempty"`
	Bits           uint8   `json:"bits,omitempty"`
	BytesPerSecond int64   `json:"bytes_per_second,omitempty"`
	Port           string  `json:"port,omitempty"`
	OtherPort      string  `json:"other_port,omitempty"`
	Drop           float64 `json:"drop,omitempty"`
	Duplicate      float64 `json:"duplicate,omitempty"`
}

// serveControl answers the control socket until the context ends.
func (s *supervisor) serveControl(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.status(), nil) })
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, _ *http.Request) { answer(w, struct{}{}, nil); s.cancel() })
	mux.HandleFunc("POST /v1/machines/{name}/power", s.handlePower)
	mux.HandleFunc("GET /v1/machines/{name}/console", s.handleConsole)
	mux.HandleFunc("POST /v1/fault", func(w http.ResponseWriter, r *http.Request) {
		var f Fault
		if err := decode(r, &f); err != nil {
			answer(w, nil, err)
			return
		}
		answer(w, struct{}{}, s.fault(r.Context(), f))
	})
	mux.HandleFunc("GET /v1/ports/{port...}", s.handlePcap)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { wg.Go(func() { server.Close() }) })
	defer wg.Wait()
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

func decode(r *http.Request, into any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxControlBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	return nil
}

// answer writes a value, or an error as {"error": text} with status 400.
func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

func (s *supervisor) status() SupervisorStatus {
	st := SupervisorStatus{Rack: s.config.Name, Accel: s.config.Accel, Started: s.started, Switch: s.sw.Snapshot()}
	for _, c := range s.config.Machines {
		m := s.machines[c.Name]
		ms := MachineStatus{Name: c.Name, BMC: c.BMC.Address, UUID: c.UUID, TPM: c.TPM, NextBoot: m.bmc.Flags.Peek().String(), BMCStuck: m.bmc.Stuck()}
		m.mu.Lock()
		ms.On, ms.Starts = m.proc != nil, m.starts
		if ms.On {
			ms.Since, ms.PID = m.since, m.proc.PID()
		}
		for i, d := range c.Disks {
			if m.pulled[i] {
				ms.PulledDisks = append(ms.PulledDisks, d.Serial)
			}
		}
		m.mu.Unlock()
		for _, n := range c.NICs {
			ms.Ports, ms.MACs = append(ms.Ports, n.Port), append(ms.MACs, n.MAC)
		}
		ms.DiskSerial = m.serials()
		st.Machines = append(st.Machines, ms)
	}
	return st
}

func (s *supervisor) machine(name string) (*machine, error) {
	m, ok := s.machines[name]
	if !ok {
		return nil, fmt.Errorf("the rack has no machine %q", name)
	}
	return m, nil
}

func (s *supervisor) handlePower(w http.ResponseWriter, r *http.Request) {
	var req powerRequest
	m, err := s.machine(r.PathValue("name"))
	if err == nil {
		err = decode(r, &req)
	}
	if err == nil {
		err = power(r.Context(), m, req.Action)
	}
	answer(w, struct{}{}, err)
}

func power(ctx context.Context, m *machine, action string) error {
	switch action {
	case "on":
		return m.PowerOn(ctx)
	case "off":
		return m.PowerOff(ctx)
	case "reset":
		return m.Reset(ctx)
	case "soft":
		return m.Shutdown(ctx)
	}
	return fmt.Errorf("power action %q: want on, off, reset or soft", action)
}

func (s *supervisor) fault(ctx context.Context, f Fault) error {
	switch f.Kind {
	case "port-down":
		return s.sw.Cut(f.Port)
	case "port-up":
		return s.sw.Restore(f.Port)
	case "swap-ports":
		return s.sw.SwapCables(f.Port, f.OtherPort)
	case "loss":
		return s.sw.SetLoss(f.Port, f.Drop, f.Duplicate)
	}
	m, err := s.machine(f.Machine)
	if err != nil {
		return fmt.Errorf("fault %q: %w", f.Kind, err)
	}
	switch f.Kind {
	case "link-down", "link-up":
		return m.cut(ctx, f.NIC, f.Kind == "link-down")
	case "pull-plug":
		return m.PowerOff(ctx)
	case "pull-disk", "insert-disk":
		if err := m.pull(ctx, f.Serial, f.Kind == "pull-disk"); err != nil {
			return fmt.Errorf("fault %q: %w", f.Kind, err)
		}
		return nil
	case "bmc-stuck", "bmc-ok":
		m.bmc.SetStuck(f.Kind == "bmc-stuck")
		return nil
	case "smart-warning", "slow-disk":
		return m.diskFault(ctx, f)
	}
	return fmt.Errorf("fault %q is not known", f.Kind)
}

func (m *machine) diskFault(ctx context.Context, f Fault) error {
	if f.Disk < 0 || f.Disk >= len(m.config.Disks) {
		return fmt.Errorf("fault %q: machine %s has no disk %d", f.Kind, m.config.Name, f.Disk)
	}
	p := m.process()
	if p == nil {
		return fmt.Errorf("fault %q: machine %s: %w", f.Kind, m.config.Name, errOff)
	}
	if f.Kind == "slow-disk" {
		return p.Throttle(ctx, f.Disk, f.BytesPerSecond)
	}
	if m.config.Disks[f.Disk].Bus != "nvme" {
		return fmt.Errorf("fault %q: disk %d of machine %s is not NVMe", f.Kind, f.Disk, m.config.Name)
	}
	return p.SetSMARTWarning(ctx, f.Disk, f.Bits)
}

// handleConsole turns the connection into the machine's serial port.
func (s *supervisor) handleConsole(w http.ResponseWriter, r *http.Request) {
	m, err := s.machine(r.PathValue("name"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: console\r\n\r\n"); err != nil {
		return
	}
	client := m.console.attach()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(conn, client) // until either side has gone
		conn.Close()
	})
	_, _ = io.Copy(client, buffered)
	client.Close()
	wg.Wait()
}

// handlePcap streams what a port receives and sends, in pcap format, until the client goes away.
func (s *supervisor) handlePcap(w http.ResponseWriter, r *http.Request) {
	frames := make(chan []byte, 1024)
	stop, err := s.sw.StartCapture(r.PathValue("port"), &frameWriter{frames})
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer func() { _ = stop() }() // frames dropped for a slow reader
	w.Header().Set("Content-Type", "application/vnd.tcpdump.pcap")
	flush := http.NewResponseController(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case f := <-frames:
			if _, err := w.Write(f); err != nil {
				return
			}
			if len(frames) == 0 && flush.Flush() != nil {
				return
			}
		}
	}
}

// frameWriter hands frames over without ever holding up the switch.
type frameWriter struct{ frames chan []byte }

// Write implements io.Writer.
func (f *frameWriter) Write(p []byte) (int, error) {
	select {
	case f.frames <- append([]byte(nil), p...):
		return len(p), nil
	default:
		return 0, errors.New("the reader of the capture is too slow")
	}
}
