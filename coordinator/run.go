package coordinator

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
	"bloomery/images"
	"bloomery/internal/pki"
	"bloomery/netboot"
	"bloomery/network/switchport"
)

const (
	pruneEvery = time.Minute
	// keepNotes is how long the ids of transactions are kept; a retry takes seconds.
	keepNotes = time.Hour
)

// Run is a whole coordinator: it opens the store, listens, drives jobs and returns when the context ends, which is no error.
func Run(ctx context.Context, config Config, log *slog.Logger) error {
	return RunWith(ctx, config, Deps{Logger: log})
}

// RunWith is Run with other hands: deps has the logger, and how BMCs and switches are reached if not in the usual way.
func RunWith(ctx context.Context, config Config, deps Deps) (err error) {
	if deps.DialBMC == nil {
		deps.DialBMC = dialIPMI(deps.Logger)
	}
	if deps.DialSwitch == nil {
		deps.DialSwitch = dialSwitch
	}
	authority, err := pki.LoadAuthority(config.PKI)
	if err != nil {
		return err
	}
	key, err := config.imageKey()
	if err != nil {
		return fmt.Errorf("load the key that images are signed by: %w", err)
	}
	if err := os.MkdirAll(config.Data, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	members, err := openRoster(config.Data)
	if err != nil {
		return err
	}
	if n, ok := members.node(config.Node); ok && !n.Present() {
		return removedError(config)
	}
	defer func() {
		if errors.Is(err, store.ErrRemoved) {
			err = errors.Join(removedError(config), members.remove(config.Node, time.Now()))
		}
	}()
	// The database is first: it keeps a second program out of the data folder.
	db, err := store.Open(ctx, store.Options{Dir: filepath.Join(config.Data, "dqlite"), SecretFile: filepath.Join(config.Data, "secret.key"), Now: config.Now,
		Cluster: clusterOptions(config, authority, members), Logger: deps.Logger})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	imageStore, err := images.OpenStore(filepath.Join(config.Data, "images"), key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, imageStore.Close()) }()
	deps.Store, deps.Images, deps.Authority, deps.roster = db, imageStore, authority, members
	c, err := New(config, deps)
	if err != nil {
		return err
	}
	return c.serve(ctx)
}

func dialIPMI(log *slog.Logger) DialBMC {
	return func(ctx context.Context, address, username, password string) (bmc.Driver, error) {
		return bmc.DialIPMI(ctx, bmc.Options{Address: address, Username: username, Password: password, Logger: log})
	}
}

func dialSwitch(ctx context.Context, s Switch) (switchport.Driver, error) {
	var password string
	if s.PasswordFile != "" {
		data, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("switch %s: read its password: %w", s.Name, err)
		}
		password = strings.TrimRight(string(data), "\r\n")
	}
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("switch %s: read its CA: %w", s.Name, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("switch %s: %s holds no certificate", s.Name, s.CA)
	}
	return switchport.DialGNMI(ctx, switchport.Options{Address: s.Address, CA: pool, Username: s.Username, Password: password})
}

// serve runs the listeners and the drivers; the first that fails ends the others.
func (c *Coordinator) serve(ctx context.Context) error {
	api, err := listenAll(ctx, c.config.Listen.API)
	if err != nil {
		return err
	}
	phoneHome, err := listenAll(ctx, c.config.Listen.PhoneHome)
	if err != nil {
		return errors.Join(err, closeAll(api))
	}
	var metrics []net.Listener
	if c.config.Listen.Metrics != "" {
		if metrics, err = listenAll(ctx, []string{c.config.Listen.Metrics}); err != nil {
			return errors.Join(err, closeAll(api), closeAll(phoneHome))
		}
	}
	var boot *netboot.Server
	if c.config.Provisioning != nil {
		boot, err = netboot.Listen(ctx, c.netbootConfig(ctx))
		if err != nil {
			return errors.Join(fmt.Errorf("start the boot servers: %w", err), closeAll(api), closeAll(phoneHome), closeAll(metrics))
		}
	}
	c.boot.Store(boot)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failures []error
	part := func(name string, run func() error) {
		wg.Go(func() {
			defer cancel()
			if err := run(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failures = append(failures, fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	keeper := c.newAuthorityKeeper(authoritySettle)
	keeper.begin(ctx)
	part("API", func() error { return serve(ctx, server(c.Handler(), c.Authority.ServerTLS(), c.Logger), api) })
	if len(phoneHome) > 0 {
		part("phone-home", func() error { return serve(ctx, phoneHomeServer(c.PhoneHome(), c.Logger), phoneHome) })
	}
	if len(metrics) > 0 {
		part("metrics", func() error { return serve(ctx, phoneHomeServer(c.plainMetrics(), c.Logger), metrics) })
	}
	if boot != nil {
		part("netboot", func() error { return boot.Serve(ctx) })
	}
	part("database", func() error { return c.Store.Wait(ctx) })
	part("coordinators", func() error { return c.keepRoster(ctx) })
	part("hints", func() error { return c.follow(ctx) })
	part("certificates", func() error { return keeper.run(ctx) })
	part("keys of images", func() error { return c.keepImageKeys(ctx) })
	part("images", func() error { return c.syncImages(ctx) })
	part("jobs", func() error { return c.Drive(ctx) })
	part("webhooks", func() error { return c.DeliverWebhooks(ctx) })
	part("event archive", func() error { return c.Archive(ctx) })
	part("pruning", func() error { return c.prune(ctx) })
	c.Logger.Info("coordinator is up", "api", c.config.Listen.API)
	if c.config.Ready != nil {
		if err := c.config.Ready(); err != nil {
			c.Logger.Warn("say that the coordinator is up", "error", err)
		}
	}
	wg.Wait()
	c.Logger.Info("coordinator has stopped")
	return errors.Join(failures...)
}

// phoneHomeServer has tight limits: anyone on a customer's network can reach it.
func phoneHomeServer(h http.Handler, log *slog.Logger) *http.Server {
	s := server(h, nil, log)
	s.ReadTimeout, s.WriteTimeout, s.IdleTimeout, s.MaxHeaderBytes = headerTimeout, headerTimeout, headerTimeout, 8<<10
	return s
}

func (c *Coordinator) netbootConfig(ctx context.Context) netboot.Config {
	p := c.config.Provisioning
	return netboot.Config{
		Interface: p.Interface, Address: p.Address, Range: p.Range,
		DHCP: ":67", TFTP: c.config.Listen.TFTP, HTTP: c.config.Listen.Boot,
		Files: c.config.AgentImage, Directory: directory{c}, Allowed: c.mayBoot,
		Observer: func(e netboot.Event) { c.observe(ctx, e) }, Logger: c.Logger,
	}
}

func listenAll(ctx context.Context, addresses []string) ([]net.Listener, error) {
	var all []net.Listener
	for _, a := range addresses {
		l, err := listen(ctx, a)
		if err != nil {
			return nil, errors.Join(err, closeAll(all))
		}
		all = append(all, l)
	}
	return all, nil
}

func closeAll(listeners []net.Listener) error {
	var all []error
	for _, l := range listeners {
		all = append(all, l.Close())
	}
	return errors.Join(all...)
}

// prune keeps the store small until the context ends.
func (c *Coordinator) prune(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pruneEvery):
		}
		var err error
		for more := true; more && err == nil; {
			err = c.Store.Update(ctx, func(tx *store.Tx) (err error) {
				more, err = tx.PruneNotes(tx.Now().Add(-keepNotes))
				return err
			})
		}
		if err != nil && ctx.Err() == nil {
			c.Logger.Error("prune the store", "error", err)
		}
	}
}
