package coordinator

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
	"bloomery/firmware/bmc/bmctest"
	"bloomery/images"
	"bloomery/internal/pki"
	"bloomery/netboot"
	"bloomery/network/switchport"
	"bloomery/network/switchport/switchporttest"
)

const (
	testMAC  = "52:54:00:00:00:01"
	testUUID = "11111111-2222-3333-4444-555555555555"
)

// rack is a coordinator with a real store and real TLS, and a machine made of fakes.
type rack struct {
	t      *testing.T
	dir    string
	config Config
	images *images.Store
	// imageKey signs images.
	imageKey images.PrivateKey
	auth     *pki.Authority
	machine  *bmctest.Fake
	sw       *switchporttest.Switch
	// learns is what the switch learns on the port when the machine is on.
	learns net.HardwareAddr
	// act changes what the machine's agent does with a step; nil does it well.
	mu  sync.Mutex
	act func(a *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished
	// installed is the vendor-data of the system on the disk.
	installed []byte
	// ran counts the steps that agents finished, by kind.
	ran map[string]int

	// targets are what came beside the steps, by the step's kind.
	targets map[string]*bloomeryv1.LayoutTarget

	// logTo, unless nil, gets all that the coordinator logs, as JSON.
	logTo io.Writer

	// What a coordinator's life has.
	c        *Coordinator
	db       *store.Store
	api      string
	phone    string
	stop     context.CancelFunc
	wg       sync.WaitGroup
	agents   sync.WaitGroup
	stopAll  context.CancelFunc
	life     context.Context
	offAgent context.CancelFunc
	// skew is how far the coordinator's wall clock is ahead, in nanoseconds.
	skew atomic.Int64
}

// setClock puts the coordinator's wall clock ahead of the others'.
func (r *rack) setClock(ahead time.Duration) { r.skew.Store(int64(ahead)) }

func testTiming() Timing {
	return Timing{Boot: 5 * time.Second, Await: 10 * time.Second, Quiet: 700 * time.Millisecond, Lost: 20 * time.Second, Job: time.Minute, Tick: 20 * time.Millisecond, Lease: 600 * time.Millisecond, Images: 200 * time.Millisecond, Archive: time.Hour, Retry: 5 * time.Millisecond}
}

func newRack(t *testing.T) *rack {
	t.Helper()
	dir := t.TempDir()
	r := &rack{t: t, dir: dir, ran: map[string]int{}, targets: map[string]*bloomeryv1.LayoutTarget{}, sw: switchporttest.New()}
	r.life, r.stopAll = context.WithCancel(context.Background())
	pkiDir := filepath.Join(dir, "pki")
	must(t, pki.InitRack(pkiDir, pki.InitOptions{Name: "test", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "anna"}))
	public, private, err := images.GenerateKey()
	must(t, err)
	r.imageKey = private
	r.images, err = images.OpenStore(filepath.Join(dir, "images"), public)
	must(t, err)
	r.addImage("tiny", 1<<20, private)
	r.addImage("huge", 1<<40, private)
	r.auth, err = pki.LoadAuthority(pkiDir)
	must(t, err)
	r.learns, err = net.ParseMAC(testMAC)
	must(t, err)
	r.sw.AddPort("Ethernet1", 100)
	r.machine = bmctest.New(r.power)
	r.config = Config{
		Data: dir, PKI: pkiDir, Timing: testTiming(),
		Now:          func() time.Time { return time.Now().Add(time.Duration(r.skew.Load())) },
		Provisioning: &Provisioning{Interface: "none", Address: netip.MustParsePrefix("127.66.0.1/16"), Range: mustRange(t, "127.66.0.100-127.66.0.199")},
		Networks: []Network{
			{Name: ProvisioningNetwork, VLAN: 100}, {Name: QuarantineNetwork, VLAN: 999},
			{Name: "customer-a", VLAN: 200, Prefix: netip.MustParsePrefix("127.77.0.0/24"), Gateway: netip.MustParseAddr("127.77.0.1"), Range: mustRange(t, "127.77.0.100-127.77.0.199"), PhoneHome: []string{"http://phone.invalid/phone-home/"}},
		},
		Switches: []Switch{{Name: "tor1", Driver: "gnmi", Address: "fake"}},
	}
	r.start()
	t.Cleanup(func() {
		r.stopAll()
		r.halt()
		r.agents.Wait()
		if err := r.images.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustRange(t *testing.T, s string) netboot.Range {
	t.Helper()
	r, err := netboot.ParseRange(s)
	must(t, err)
	return r
}

func (r *rack) addImage(name string, size int64, key images.PrivateKey) {
	m := images.Manifest{
		Format: images.Format, Name: name, Kind: images.KindDisk, Size: size, SectorSize: images.SectorSize, FrameSize: images.FrameSize, Created: time.Now(),
		Boot: images.Boot{RootPartition: 2, ESPPartition: 1}, Frames: []images.Frame{{Length: size, Zero: true}},
	}
	data, err := m.Encode()
	must(r.t, err)
	signature, err := images.Sign(data, key)
	must(r.t, err)
	up, err := r.images.Begin(r.t.Context(), name, data, signature)
	must(r.t, err)
	must(r.t, up.Commit())
}

// testLogger is quiet unless the tests are verbose. It fails the test when an event was stored that is not in EventTypes.
func testLogger(t testing.TB) *slog.Logger {
	var to slog.Handler = slog.NewTextHandler(io.Discard, nil)
	if testing.Verbose() {
		to = slog.NewTextHandler(t.Output(), nil)
	}
	return slog.New(declaredOnly{to, t})
}

type declaredOnly struct {
	slog.Handler
	t testing.TB
}

func (h declaredOnly) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == undeclaredEvent {
		r.Attrs(func(a slog.Attr) bool {
			h.t.Errorf("%s: %s", undeclaredEvent, a.Value)
			return true
		})
	}
	return h.Handler.Handle(ctx, r)
}

// start begins a coordinator's life on what an earlier one left.
func (r *rack) start() {
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	log := testLogger(r.t)
	if r.logTo != nil {
		log = slog.New(slog.NewJSONHandler(r.logTo, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	r.db, err = store.Open(ctx, store.Options{Dir: filepath.Join(r.dir, "dqlite"), SecretFile: filepath.Join(r.dir, "secret.key"), Logger: log})
	must(r.t, err)
	r.c, err = New(r.config, Deps{
		Store: r.db, Images: r.images, Authority: r.auth, Logger: log,
		DialBMC: func(context.Context, string, string, string) (bmc.Driver, error) { return kept{r.machine}, nil },
		DialSwitch: func(context.Context, Switch) (switchport.Driver, error) {
			return keptSwitch{r.sw}, nil
		},
	})
	must(r.t, err)
	keeper := r.c.newAuthorityKeeper(20 * time.Millisecond)
	must(r.t, keeper.follow(ctx))
	address := "127.0.0.1:0"
	if r.api != "" {
		address = r.api
	}
	l, err := listen(ctx, address)
	must(r.t, err)
	r.api = l.Addr().String()
	p, err := listen(ctx, "127.0.0.1:0")
	must(r.t, err)
	r.phone = p.Addr().String()
	r.wg.Go(func() { _ = serve(ctx, server(r.c.Handler(), r.auth.ServerTLS(), log), []net.Listener{l}) })
	r.wg.Go(func() { _ = serve(ctx, phoneHomeServer(r.c.PhoneHome(), log), []net.Listener{p}) })
	r.wg.Go(func() { _ = r.c.syncImages(ctx) })
	r.wg.Go(func() { _ = r.c.Drive(ctx) })
	r.wg.Go(func() { _ = keeper.run(ctx) })
	r.wg.Go(func() { _ = r.c.DeliverWebhooks(ctx) })
	r.wg.Go(func() { _ = r.c.Archive(ctx) })
}

// halt ends the coordinator's life.
func (r *rack) halt() {
	r.stop()
	r.wg.Wait()
	if err := r.db.Close(); err != nil {
		r.t.Error(err)
	}
}

// kept is a driver that survives the coordinator's Close after each action.
type kept struct{ *bmctest.Fake }

func (kept) Close(context.Context) error { return nil }

type keptSwitch struct{ *switchporttest.Switch }

func (keptSwitch) Close() error { return nil }

// power is what the machine does when its power changes: it netboots the agent, or starts what is on its disk.
func (r *rack) power(on bool, boot bmc.BootDevice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.offAgent != nil {
		r.offAgent()
		r.offAgent = nil
	}
	if !on {
		return
	}
	r.sw.Change("Ethernet1", func(s *switchport.State) { s.MACs = []switchport.LearnedMAC{{MAC: r.learns}} })
	ctx, cancel := context.WithCancel(r.life)
	r.offAgent = cancel
	if boot.Target == bmc.BootNetwork {
		r.agents.Go(func() { r.runAgent(ctx) })
	}
}

// reboot is what the handover does.
func (r *rack) reboot() {
	r.mu.Lock()
	vendor := r.installed
	r.mu.Unlock()
	token := regexp.MustCompile(`/phone-home/([A-Za-z0-9_-]{43})`).FindSubmatch(vendor)
	if token == nil {
		r.t.Errorf("no token in the vendor-data %q", vendor)
		return
	}
	r.agents.Go(func() {
		for r.sw.VLAN("Ethernet1") != 200 {
			select {
			case <-r.life.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		status, err := r.phoneHome("127.77.0.100", string(token[1]))
		if err != nil || status != http.StatusNoContent {
			r.t.Logf("phone home: %d %v", status, err)
		}
	})
}

func (r *rack) phoneHome(from, token string) (int, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: fromAddress(from), DisableKeepAlives: true}, Timeout: 5 * time.Second}
	response, err := client.Post("http://"+r.phone+"/phone-home/"+token, "application/x-www-form-urlencoded", strings.NewReader("instance_id=x"))
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

func fromAddress(from string) func(context.Context, string, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return d.DialContext
}

// operator is a client with the first operator's certificate.
type operator struct {
	machines bloomeryv1connect.MachineServiceClient
	jobs     bloomeryv1connect.JobServiceClient
	events   bloomeryv1connect.EventServiceClient
	http     *http.Client
}

func (r *rack) operator() operator {
	cert, key := pki.OperatorFiles(r.config.PKI, "anna")
	config, err := pki.ClientTLS(filepath.Join(r.config.PKI, pki.CACert), cert, key)
	must(r.t, err)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	r.t.Cleanup(client.CloseIdleConnections)
	base := "https://" + r.api
	return operator{bloomeryv1connect.NewMachineServiceClient(client, base), bloomeryv1connect.NewJobServiceClient(client, base), bloomeryv1connect.NewEventServiceClient(client, base), client}
}

// createMachine records the rack's one machine.
func (r *rack) createMachine(op operator) {
	_, err := op.machines.CreateMachine(r.life, connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: &bloomeryv1.Machine{
		Name: "m1", Uuid: testUUID, Macs: []string{testMAC}, Bmc: &bloomeryv1.BMC{Address: "10.65.0.11", Username: "admin", Password: "top-secret"},
		SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: "Ethernet1"},
	}}))
	must(r.t, err)
}

// end waits until a job has ended.
func (r *rack) end(id string) *bloomeryv1.Job {
	r.t.Helper()
	return r.until(id, func(j *bloomeryv1.Job) bool { return j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING })
}

func (r *rack) until(id string, ok func(*bloomeryv1.Job) bool) *bloomeryv1.Job {
	r.t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for {
		j, err := r.c.job(r.life, id)
		must(r.t, err)
		if ok(j.Job) {
			return j.Job
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("job %s stands at step %d: %v", id, j.GetStepIndex(), j.Current())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *rack) inspect(op operator) {
	r.t.Helper()
	response, err := op.machines.InspectMachine(r.life, connect.NewRequest(&bloomeryv1.InspectMachineRequest{Name: "m1"}))
	must(r.t, err)
	if j := r.end(response.Msg.GetJob().GetId()); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		r.t.Fatalf("inspection: %s %s", j.GetErrorReason(), j.GetError())
	}
}

func (r *rack) install(op operator) string {
	r.t.Helper()
	response, err := op.machines.InstallMachine(r.life, connect.NewRequest(&bloomeryv1.InstallMachineRequest{Name: "m1", Spec: &bloomeryv1.InstallSpec{
		Image: "tiny", Network: "customer-a", UserData: []byte("#cloud-config\npassword: hunter2\n"),
	}}))
	must(r.t, err)
	return response.Msg.GetJob().GetId()
}

func (r *rack) setAct(f func(a *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.act = f
}

func (r *rack) m1() *bloomeryv1.Machine {
	r.t.Helper()
	m, err := r.c.machine(r.life, "m1")
	must(r.t, err)
	return m
}

func (r *rack) eventTypes() map[string]int {
	r.t.Helper()
	events, err := r.c.events(r.life, store.EventFilter{Limit: 10000})
	must(r.t, err)
	types := map[string]int{}
	for _, e := range events {
		types[e.GetType()]++
	}
	return types
}
