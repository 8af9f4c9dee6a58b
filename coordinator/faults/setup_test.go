package faults

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator"
	"bloomery/images"
	"bloomery/internal/pki"
)

// size is how large a world is.
type size struct{ nodes, machines, reporters int }

// newWorld brings a rack up: coordinators that have joined each other, machines that have been recorded, reporters that report.
func newWorld(t *testing.T, s size) *world {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{t: t, ctx: ctx, dir: t.TempDir(), record: newRecorder(), stopAsking: make(chan struct{})}
	t.Cleanup(func() { w.close(cancel) })
	if err := w.build(s); err != nil {
		t.Fatal(err)
	}
	return w
}

// close ends everything; the logs stay where somebody wants them.
func (w *world) close(cancel context.CancelFunc) {
	cancel()
	w.stop.Do(func() { close(w.stopAsking) })
	w.asking.Wait()
	w.running.Wait()
	for _, n := range w.nodes {
		if err := n.end(syscall.SIGTERM); err != nil {
			w.t.Errorf("%v", err)
		}
		if what := n.misbehaviour(); what != "" {
			w.t.Errorf("coordinator %s: %s", n.name, what)
		}
		if keep := os.Getenv(logsVariable); keep != "" {
			if err := errors.Join(os.MkdirAll(keep, 0o755), copyFile(n.log.Name(), filepath.Join(keep, n.name+".log"))); err != nil {
				w.t.Errorf("keep the log of %s: %v", n.name, err)
			}
		}
		if err := errors.Join(n.log.Close(), unix.Unmount(n.dir, unix.MNT_DETACH)); err != nil {
			w.t.Errorf("put %s away: %v", n.name, err)
		}
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

func (w *world) build(s size) error {
	if err := layHub(); err != nil {
		return err
	}
	var addresses []string
	for i := 1; i <= s.nodes; i++ {
		n, err := w.layNode(i)
		if err != nil {
			return err
		}
		w.nodes = append(w.nodes, n)
		addresses = append(addresses, n.address.String())
	}
	first := w.nodes[0]
	pkiDir := filepath.Join(first.dir, "pki")
	if err := pki.InitRack(pkiDir, pki.InitOptions{Name: "faults", Node: first.name, ServerAddresses: addresses, OperatorName: "anna"}); err != nil {
		return err
	}
	key := filepath.Join(w.dir, "image.key")
	public, err := images.GenerateKeyFiles(key, filepath.Join(pkiDir, "image.pub"))
	if err != nil {
		return err
	}
	private, err := images.LoadPrivateKey(key, "")
	if err != nil {
		return err
	}
	boot := filepath.Join(w.dir, "boot")
	if err := errors.Join(os.Mkdir(boot, 0o755), os.WriteFile(filepath.Join(boot, "bloomery-agent.efi"), []byte("agent"), 0o644)); err != nil {
		return err
	}
	if w.devices, err = w.plugIn(); err != nil {
		return err
	}
	for _, n := range w.nodes {
		if err := errors.Join(os.WriteFile(n.config, []byte(w.configuration(n, boot)), 0o600), n.addImage(w.t.Context(), public, private)); err != nil {
			return err
		}
	}
	if w.operator, err = w.newOperator(pkiDir); err != nil {
		return err
	}
	if w.relay, err = w.startRelay(); err != nil {
		return err
	}
	if err := w.startNodes(); err != nil {
		return err
	}
	return w.populate(s)
}

// startNodes starts the first coordinator, lets the others join it, and starts them.
func (w *world) startNodes() error {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	first, others := w.nodes[0], w.nodes[1:]
	if err := first.start(); err != nil {
		return err
	}
	if err := w.ready(ctx, first); err != nil {
		return err
	}
	for _, n := range others {
		if err := w.join(ctx, first, n); err != nil {
			return fmt.Errorf("let %s join: %w", n.name, err)
		}
		if err := errors.Join(n.start(), w.ready(ctx, n)); err != nil {
			return err
		}
	}
	return w.voters(ctx)
}

// join makes a coordinator one of the rack's, as "bloomery rack join" does.
func (w *world) join(ctx context.Context, first, n *node) error {
	c := w.operator.caller()
	defer c.close()
	token, err := bloomeryv1connect.NewRackServiceClient(c.http, first.url()).CreateJoinToken(ctx, connect.NewRequest(&bloomeryv1.CreateJoinTokenRequest{Node: n.name}))
	if err != nil {
		return err
	}
	config, err := coordinator.LoadConfig(n.config)
	if err != nil {
		return err
	}
	return coordinator.Join(ctx, config, token.Msg.GetToken(), nil)
}

// voters waits until every coordinator has a vote, so that one may be lost.
func (w *world) voters(ctx context.Context) error {
	c := w.operator.caller()
	defer c.close()
	for {
		status, err := bloomeryv1connect.NewRackServiceClient(c.http, w.nodes[0].url()).GetRackStatus(ctx, connect.NewRequest(&bloomeryv1.GetRackStatusRequest{}))
		if err != nil {
			return fmt.Errorf("ask for the rack's status: %w", err)
		}
		voting := 0
		for _, n := range status.Msg.GetNodes() {
			if n.GetRole() == bloomeryv1.NodeRole_NODE_ROLE_VOTER {
				voting++
			}
		}
		if voting == len(w.nodes) {
			return nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return fmt.Errorf("%d of %d coordinators have a vote: %v", voting, len(w.nodes), status.Msg)
		}
	}
}

// populate records the machines and lets the reporters enrol.
func (w *world) populate(s size) error {
	ctx, cancel := context.WithTimeout(w.ctx, 90*time.Second)
	defer cancel()
	w.running.Go(w.operator.watch)
	var all errgroup.Group
	all.SetLimit(12)
	for i := 1; i <= s.machines+s.reporters; i++ {
		m, err := w.rackMachine(i)
		if err != nil {
			return err
		}
		w.machines = append(w.machines, m)
		reports := i > s.machines
		m.works = !reports
		m.reporter.Store(reports)
		all.Go(func() error {
			c := w.operator.caller()
			defer c.close()
			if err := c.create(ctx, m, netip.AddrPortFrom(m.controller(i), 623).String()); err != nil || !reports {
				return err
			}
			job, err := c.ask(ctx, m, "inspect", "enrol-"+m.name)
			if err != nil {
				return err
			}
			_, err = c.follow(ctx, job)
			return err
		})
	}
	return all.Wait()
}

func (w *world) configuration(n *node, boot string) string {
	var phoneHome []string
	for _, other := range w.nodes {
		phoneHome = append(phoneHome, fmt.Sprintf("http://%s/phone-home/", netip.AddrPortFrom(other.address, phoneHomePort)))
	}
	return fmt.Sprintf(`data: %s
node: %s
cluster: {address: "%s"}
listen:
  api: [%s]
  boot: %s
  phone_home: [%s]
provisioning: {interface: eth0, address: %s, range: 10.99.1.1-10.99.1.250}
agent_image: %s
networks:
  - {name: provisioning, vlan: %d}
  - {name: quarantine, vlan: %d}
  - name: customer-a
    vlan: %d
    prefix: %s
    gateway: 10.98.255.254
    range: 10.98.0.1-10.98.0.250
    phone_home: [%s]
switches:
  - {name: tor1, driver: gnmi, address: "%s", ca: %s, username: %s, password_file: %s}
`, n.dir, n.name, netip.AddrPortFrom(n.address, clusterPort), netip.AddrPortFrom(n.address, apiPort), netip.AddrPortFrom(n.address, 80), netip.AddrPortFrom(n.address, phoneHomePort),
		netip.PrefixFrom(n.address, network.Bits()), boot, provisioningVLAN, quarantineVLAN, customerVLAN, customer,
		strings.Join(phoneHome, ", "), netip.AddrPortFrom(hub, switchPort), w.devices.ca, username, w.devices.login)
}

// addImage puts a small signed image of zeros into the coordinator's store.
func (n *node) addImage(ctx context.Context, public images.PublicKey, private images.PrivateKey) error {
	store, err := images.OpenStore(filepath.Join(n.dir, "images"), public)
	if err != nil {
		return err
	}
	const bytes = 1 << 20
	m := images.Manifest{
		Format: images.Format, Name: "tiny", Kind: images.KindDisk, Size: bytes, SectorSize: images.SectorSize, FrameSize: images.FrameSize,
		Created: time.Unix(1_700_000_000, 0).UTC(), Boot: images.Boot{RootPartition: 2, ESPPartition: 1}, Frames: []images.Frame{{Length: bytes, Zero: true}},
	}
	manifest, err := m.Encode()
	if err != nil {
		return err
	}
	signature, err := images.Sign(manifest, private)
	if err != nil {
		return err
	}
	up, err := store.Begin(ctx, m.Name, manifest, signature)
	if err != nil {
		return err
	}
	return errors.Join(up.Commit(), store.Close())
}
