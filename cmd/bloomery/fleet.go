package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bloomery/internal/pki"
)

const (
	// maxFleetFile bounds the file in bytes, maxRacks the racks in it, racksAtOnce those that are asked at the same time.
	maxFleetFile = 1 << 20
	maxRacks     = 500
	racksAtOnce  = 32
	rackTimeout  = 20 * time.Second
)

// fleetRack is one rack of a fleet and the client configuration that reaches it.
type fleetRack struct {
	Name   string `yaml:"name"`
	Config string `yaml:"config"`
}

// fleetFlags say which racks are asked.
type fleetFlags struct {
	path    string
	only    []string
	timeout time.Duration
}

func newFleetCommand(set *settings) *cobra.Command {
	in := &fleetFlags{}
	cmd := group("fleet", "Ask several racks at once",
		group("machine", "Look at the machines of all racks", newMachineList(set, in)),
		group("job", "Look at the jobs of all racks", newJobList(set, in)),
		group("event", "Look at the events of all racks", newEventList(set, in)),
		group("image", "Look at the images of all racks", newImageList(set, in)),
		group("rack", "Look at the coordinators of all racks", newFleetRackStatus(set, in)),
		newViewRun(set, in))
	cmd.Long = `Fleet asks every rack of a list at once and merges what they answer: a RACK column in tables,
a "rack" beside each item in JSON and YAML. A rack that does not answer in time is named on standard
error and under "errors", the output says "partial": true, and the exit code is 1.

The list is a file: --fleet, else $BLOOMERY_FLEET, else ~/.config/bloomery/fleet.yaml:

  racks:
    - {name: par1-a12, config: par1-a12/config.yaml}
    - {name: par1-a13, config: par1-a13/config.yaml}

Each config is what "bloomery --config" takes; a relative path is relative to the list.`
	flags := cmd.PersistentFlags()
	flags.StringVar(&in.path, "fleet", "", "file that lists the racks")
	flags.StringSliceVar(&in.only, "only", nil, "only these racks of the list; may be repeated")
	flags.DurationVar(&in.timeout, "timeout", rackTimeout, "how long a rack may take to answer")
	return cmd
}

// racks reads which racks to ask.
func (f *fleetFlags) racks() ([]fleetRack, error) {
	if f.timeout <= 0 {
		return nil, usagef("--timeout %s: use a time above zero", f.timeout)
	}
	path := f.path
	if path == "" {
		path = os.Getenv("BLOOMERY_FLEET")
	}
	if path == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return nil, fmt.Errorf("find the list of racks: %w; use --fleet", err)
		}
		path = filepath.Join(dir, "bloomery", "fleet.yaml")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of racks: %w; \"bloomery fleet --help\" shows what it looks like", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFleetFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the list of racks: %w", err)
	}
	racks, err := parseFleet(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for i := range racks {
		if !filepath.IsAbs(racks[i].Config) {
			racks[i].Config = filepath.Join(filepath.Dir(path), racks[i].Config)
		}
	}
	return f.chosen(racks)
}

func (f *fleetFlags) chosen(racks []fleetRack) ([]fleetRack, error) {
	if len(f.only) == 0 {
		return racks, nil
	}
	var chosen []fleetRack
	for _, name := range f.only {
		known := false
		for _, r := range racks {
			if r.Name == name {
				chosen, known = append(chosen, r), true
			}
		}
		if !known {
			return nil, usagef("--only %q: no rack of that name is in the list", name)
		}
	}
	return chosen, nil
}

// parseFleet decodes a list of racks strictly.
func parseFleet(data []byte) ([]fleetRack, error) {
	if len(data) > maxFleetFile {
		return nil, fmt.Errorf("more than %d bytes", maxFleetFile)
	}
	var list struct {
		Racks []fleetRack `yaml:"racks"`
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&list); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	if n := len(list.Racks); n == 0 || n > maxRacks {
		return nil, fmt.Errorf("racks: %d racks: want 1 to %d", n, maxRacks)
	}
	names := map[string]bool{}
	for i, r := range list.Racks {
		if err := pki.ValidName(r.Name); err != nil {
			return nil, fmt.Errorf("racks[%d].name: %w", i, err)
		}
		if names[r.Name] {
			return nil, fmt.Errorf("racks[%d].name: %s is there twice", i, r.Name)
		}
		names[r.Name] = true
		if r.Config == "" {
			return nil, fmt.Errorf("racks[%d].config: name the client configuration of rack %s", i, r.Name)
		}
	}
	return list.Racks, nil
}

// askRacks asks all racks, some at a time, each for as long as it may take, and waits for all. Texts say why a rack did not answer.
func askRacks[A any](ctx context.Context, racks []fleetRack, timeout time.Duration, fetch func(context.Context, *client) (A, error)) (answers map[string]A, errs map[string]string) {
	answers, errs = map[string]A{}, map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, racksAtOnce)
	for _, rack := range racks {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			answer, err := askRack(ctx, rack, timeout, fetch)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs[rack.Name] = explain(err)
				return
			}
			answers[rack.Name] = answer
		})
	}
	wg.Wait()
	return answers, errs
}

func askRack[A any](ctx context.Context, rack fleetRack, timeout time.Duration, fetch func(context.Context, *client) (A, error)) (answer A, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := (&settings{configPath: rack.Config}).connect()
	if err != nil {
		return answer, err
	}
	answer, err = fetch(ctx, c)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return answer, fmt.Errorf("no answer within %s", timeout)
	}
	return answer, err
}
