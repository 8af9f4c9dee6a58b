package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/checks"
	"bloomery/cloudinit"
	"bloomery/firmware/bmc"
	"bloomery/firmware/efiboot"
	"bloomery/images"
	"bloomery/inventory"
	"bloomery/network"
	"bloomery/partition"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
	"bloomery/partition/system"
	"bloomery/partition/wipe"
)

// fakeMachine is a machine that does what it is told and remembers it.
type fakeMachine struct {
	mu       sync.Mutex
	did      []string
	disks    []inventory.Disk
	damage   error
	wipeErr  error
	results  []checks.Result
	clock    time.Time
	rebooted chan struct{}
	// blocked, loadErr and kexecErr are what keeps a kexec from being done; kexeced is closed when it is.
	blocked           string
	loadErr, kexecErr error
	kexeced           chan struct{}
	loaded            installedKernel
	key               images.PublicKey
	layout            fakeLayout
	// during is called in the middle of a wipe.
	during func()
}

func newFakeMachine() *fakeMachine {
	return &fakeMachine{
		disks:    []inventory.Disk{{Name: "vda", Path: "/dev/vda", Serial: "S1", SizeBytes: 8 << 20, LogicalSector: 512}, {Name: "vdb", Path: "/dev/vdb", Serial: "S2", SizeBytes: 8 << 20}},
		rebooted: make(chan struct{}), kexeced: make(chan struct{}),
	}
}

func (m *fakeMachine) note(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did = append(m.did, what)
}

func (m *fakeMachine) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, d := range m.did {
		if d == what {
			n++
		}
	}
	return n
}

func (m *fakeMachine) Mount(context.Context) error       { m.note("mount"); return nil }
func (m *fakeMachine) LoadDrivers(context.Context) error { m.note("drivers"); return nil }
func (m *fakeMachine) Network(_, _ context.Context, _ func(string)) error {
	m.note("network")
	return nil
}
func (m *fakeMachine) CheckFiles(context.Context, bool) error { return m.damage }
func (m *fakeMachine) BMC(context.Context) (bmc.Info, error)  { return bmc.Info{Firmware: "1.2"}, nil }
func (m *fakeMachine) SetTime(hint, _ time.Time) error        { m.clock = hint; return nil }
func (m *fakeMachine) Reboot() error                          { close(m.rebooted); return nil }
func (m *fakeMachine) KexecBlocked() string                   { return m.blocked }
func (m *fakeMachine) Kexec() error {
	m.note("kexec")
	if m.kexecErr == nil {
		close(m.kexeced)
	}
	return m.kexecErr
}
func (m *fakeMachine) LoadKernel(_ context.Context, dev string, number int, kernel installedKernel) error {
	m.note(fmt.Sprintf("load %s %d", dev, number))
	m.loaded = kernel
	return m.loadErr
}
func (m *fakeMachine) Collect(context.Context) (*inventory.Inventory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &inventory.Inventory{
		Product: inventory.Product{UUID: "0f0e0d0c-0000-4000-8000-000000000001", Serial: "P1"}, Disks: append([]inventory.Disk(nil), m.disks...),
		NICs: []inventory.NIC{{Name: "eth0", MAC: "52:54:00:00:00:01", Link: true}}, BMC: &inventory.BMC{Device: "/dev/ipmi0"},
	}, nil
}
func (m *fakeMachine) Neighbours(context.Context, []string) (map[string]network.Neighbour, error) {
	return map[string]network.Neighbour{"eth0": {PortID: "Ethernet1"}}, nil
}
func (m *fakeMachine) CheckDisks(context.Context, []inventory.Disk) ([]checks.Result, error) {
	return m.results, nil
}
func (m *fakeMachine) Wipe(_ context.Context, t wipe.Target, level wipe.Level, progress wipe.Progress) (wipe.Result, error) {
	m.note("wipe " + t.Path)
	m.note(string(level) + " " + t.Path)
	for i := range int64(1000) {
		progress(i, 1000, "wiping")
	}
	if m.during != nil {
		m.during()
	}
	return wipe.Result{Level: level, Method: wipe.MethodDiscard, Started: time.Now(), Ended: time.Now()}, m.wipeErr
}
func (m *fakeMachine) WriteImage(_ context.Context, dev string, o images.WriteOptions) (images.Result, error) {
	m.note("write " + dev)
	return images.Result{DiskBytes: o.Manifest.Size, ResumedAt: o.Resume.Frame, Elapsed: time.Second}, nil
}
func (m *fakeMachine) GrowRoot(context.Context, string, int) (partition.GrowResult, error) {
	return partition.GrowResult{Filesystem: "ext4"}, nil
}
func (m *fakeMachine) WriteSeed(_ context.Context, dev string, _ int, _ cloudinit.NoCloud) error {
	m.note("seed " + dev)
	return nil
}
func (m *fakeMachine) AddSeed(_ context.Context, dev string, seed partition.Seed) (partition.Info, error) {
	m.note(fmt.Sprintf("seed partition %s %s %d files behind %d", dev, seed.Label, len(seed.Files), seed.Behind))
	return partition.Info{Number: 4}, nil
}
func (m *fakeMachine) SetBootEntry(_ context.Context, dev string, esp int, _, _ string, keep bool) (efiboot.BootEntry, error) {
	m.note(fmt.Sprintf("boot entry %s %d keep %v", dev, esp, keep))
	return efiboot.BootEntry{Number: 7}, nil
}

func (m *fakeMachine) Layout(t layoutTarget) LayoutInstaller {
	m.layout.machine, m.layout.target = m, t
	return &m.layout
}

// fakeLayout is a plan's installer that finds each of the plan's disks and remembers what it was told.
type fakeLayout struct {
	machine *fakeMachine
	target  layoutTarget
	// err is what the call of a name fails with; left is what an earlier attempt left, which Unpack refuses and Renew removes.
	err    map[string]error
	left   bool
	report apply.Report
}

func (l *fakeLayout) do(what string) error {
	l.machine.note(what)
	return l.err[what]
}
func (l *fakeLayout) Apply(ctx context.Context, progress func(a layout.Action, done, total int)) (apply.Report, error) {
	for _, d := range l.target.plan.Disks {
		path, err := l.target.find(ctx, d.Serial, d.WWN)
		if err != nil {
			return apply.Report{}, err
		}
		l.machine.note("apply " + path)
	}
	for i, a := range l.target.plan.Actions() {
		progress(a, i, len(l.target.plan.Actions()))
	}
	return l.report, l.do("apply")
}
func (l *fakeLayout) Renew(context.Context) error { l.left = false; return l.do("renew") }
func (l *fakeLayout) Unpack(_ context.Context, o images.UnpackOptions) (images.UnpackResult, error) {
	if l.left {
		return images.UnpackResult{}, fmt.Errorf("unpack: %w", images.ErrNotEmpty)
	}
	return images.UnpackResult{Entries: 3, Bytes: o.Manifest.Size}, l.do("unpack")
}
func (l *fakeLayout) Configure(_ context.Context, k installedKernel) (system.Boot, error) {
	return system.Boot{Kernel: "/boot" + k.Kernel, Initrd: "/boot" + k.Initrd, CommandLine: "root=UUID=x " + k.CommandLine, Loaders: []system.Loader{{Serial: "S1", Partition: 1, Path: `\EFI\BOOT\BOOTX64.EFI`}}}, l.do("configure")
}
func (l *fakeLayout) WriteSeed(context.Context, cloudinit.NoCloud) error { return l.do("seed") }
func (l *fakeLayout) LoadKernel(_ context.Context, k installedKernel) error {
	l.machine.loaded = k
	return l.do("load")
}

// fakeCoordinator signs, hands out steps in order, and stores reports by their keys as the real one does.
type fakeCoordinator struct {
	t       *testing.T
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey
	roots   *x509.CertPool
	refuse  int // how many enrolments are refused first
	mux     *http.ServeMux
	address string
	server  *httptest.Server
	certTLS tls.Certificate

	mu     sync.Mutex
	enrols int
	// keys are the public keys that enrolments asked for, shown the serial numbers of the certificates that came with them, "" for none.
	keys  [][]byte
	shown []string
	// lifetime is the certificates', an hour when it is zero.
	lifetime time.Duration
	steps    []*pb.Step
	reports  map[int64]*pb.Report
	repeated int // reports that came again
	batches  []int
	// target comes beside every step.
	target  *pb.LayoutTarget
	again   map[string]int // how often a step is handed out after it is finished
	changed chan struct{}
}

func newFakeCoordinator(t *testing.T, steps ...*pb.Step) *fakeCoordinator {
	t.Helper()
	c := &fakeCoordinator{t: t, steps: steps, reports: map[int64]*pb.Report{}, again: map[string]int{}, changed: make(chan struct{})}
	c.key, c.ca = newCertificate(t, nil, nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	serverKey, serverCert := newCertificate(t, c.ca, c.key, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	c.certTLS = tls.Certificate{Certificate: [][]byte{serverCert.Raw}, PrivateKey: serverKey}
	c.roots = x509.NewCertPool()
	c.roots.AddCert(c.ca)
	c.mux = http.NewServeMux()
	c.mux.Handle(bloomeryv1connect.NewAgentServiceHandler(c))
	c.listen("127.0.0.1:0")
	t.Cleanup(func() { c.server.CloseClientConnections(); c.server.Close() })
	return c
}

func newCertificate(t testing.TB, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, template *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

func (c *fakeCoordinator) listen(address string) {
	c.t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = httptest.NewUnstartedServer(withCertificate(c.mux))
	c.server.Listener.Close()
	c.server.Listener, c.address = listener, listener.Addr().String()
	c.server.EnableHTTP2 = true
	c.server.TLS = &tls.Config{Certificates: []tls.Certificate{c.certTLS}, ClientCAs: c.roots, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13}
	c.server.StartTLS()
}

// urls has a dead coordinator first unless the test reads images, whose patience with it would last minutes.
func (c *fakeCoordinator) urls() []string {
	live := "https://" + c.address
	for _, step := range c.steps {
		if step.GetWriteImage() != nil || step.GetUnpackImage() != nil {
			return []string{live}
		}
	}
	return []string{"https://127.0.0.1:1", live}
}

// restart refuses connections for a while, as a coordinator that was killed does.
func (c *fakeCoordinator) restart(down time.Duration) {
	c.server.CloseClientConnections()
	c.server.Close()
	time.Sleep(down)
	c.listen(c.address)
}

type shownKey struct{}

// withCertificate tells handlers which certificate a call showed.
func withCertificate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serial := ""
		if len(r.TLS.PeerCertificates) > 0 {
			serial = r.TLS.PeerCertificates[0].SerialNumber.String()
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), shownKey{}, serial)))
	})
}

func (c *fakeCoordinator) Enrol(ctx context.Context, r *connect.Request[pb.EnrolRequest]) (*connect.Response[pb.EnrolResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enrols++
	csr, err := x509.ParseCertificateRequest(r.Msg.Csr)
	if err != nil || csr.CheckSignature() != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("bad request"))
	}
	shown, _ := ctx.Value(shownKey{}).(string)
	c.keys, c.shown = append(c.keys, csr.RawSubjectPublicKeyInfo), append(c.shown, shown)
	if c.enrols <= c.refuse {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("not expected"))
	}
	lifetime := time.Hour
	if c.lifetime != 0 {
		lifetime = c.lifetime
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(int64(c.enrols)), Subject: pkix.Name{CommonName: "node1"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(lifetime), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, csr.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.EnrolResponse{Machine: "node1", Certificates: [][]byte{der}, NotAfter: timestamppb.New(template.NotAfter)}), nil
}

func (c *fakeCoordinator) NextStep(ctx context.Context, r *connect.Request[pb.NextStepRequest]) (*connect.Response[pb.NextStepResponse], error) {
	for deadline := time.Now().Add(200 * time.Millisecond); ; {
		c.mu.Lock()
		changed := c.changed
		for _, step := range c.steps {
			if n := c.finishes(step.Id); n <= c.again[step.Id] {
				c.mu.Unlock()
				return connect.NewResponse(&pb.NextStepResponse{JobId: "job", Step: step, Target: c.target}), nil
			}
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(time.Until(deadline)):
			return connect.NewResponse(&pb.NextStepResponse{}), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// finishes counts a step's reported ends; c.mu is held.
func (c *fakeCoordinator) finishes(id string) int {
	n := 0
	for _, r := range c.reports {
		if r.StepId == id && r.GetFinished() != nil {
			n++
		}
	}
	return n
}

func (c *fakeCoordinator) Report(_ context.Context, r *connect.Request[pb.ReportRequest]) (*connect.Response[pb.ReportResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches = append(c.batches, len(r.Msg.Reports))
	var highest, last int64
	for _, report := range r.Msg.Reports {
		if report.Sequence <= last {
			c.t.Errorf("sequence numbers do not rise: %d after %d", report.Sequence, last)
		}
		last = report.Sequence
		if old, ok := c.reports[report.Sequence]; ok {
			c.repeated++
			if !proto.Equal(old, report) {
				c.t.Errorf("report %d came with another content", report.Sequence)
			}
		}
		c.reports[report.Sequence] = report
	}
	for sequence := range c.reports {
		highest = max(highest, sequence)
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return connect.NewResponse(&pb.ReportResponse{Acknowledged: highest}), nil
}

// ends gives the reported ends of a step in order.
func (c *fakeCoordinator) ends(id string) []*pb.StepFinished {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*pb.StepFinished
	for sequence := int64(1); sequence <= 100_000 && len(list) < len(c.reports); sequence++ {
		if r := c.reports[sequence]; r != nil && r.StepId == id && r.GetFinished() != nil {
			list = append(list, r.GetFinished())
		}
	}
	return list
}

// startAgent runs an agent against the coordinator until the test ends.
func startAgent(t *testing.T, c *fakeCoordinator, m *fakeMachine) {
	t.Helper()
	clock := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	}))
	t.Cleanup(clock.Close)
	var screen lockedBuffer
	a, err := New(Options{
		Config:  Config{Coordinators: c.urls(), TimeURLs: []string{clock.URL}, CA: c.roots, ImageKey: m.key, BuildDate: time.Now().Add(-time.Hour)},
		Version: "test", System: m, Hardware: m, Installer: m, Console: &screen, Log: t.Output(), RefusedRetry: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("agent ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("agent does not end")
		}
		a.console.flush(time.Second)
		if t.Failed() {
			t.Log(screen.String())
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eventually waits for something to become true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}
