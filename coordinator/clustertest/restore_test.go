package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator"
)

// TestRestoredRackGrows loses all three coordinators of a rack, restores it onto another host and lets a second one join.
func TestRestoredRackGrows(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: -short asks for quick tests only")
	}
	const passphrase = "correct horse battery"
	r := Start(t, Options{Nodes: 3})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := r.Client().Machines.CreateMachine(ctx, connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: &bloomeryv1.Machine{
		Name: "m1", Macs: []string{"52:54:00:00:00:01"}, Bmc: &bloomeryv1.BMC{Address: "10.65.0.11", Username: "admin", Password: "secret"}}}))
	ok(t, err)
	// Any coordinator makes a backup, not the leader only.
	stream, err := r.Node("c3").Client().Rack.BackupRack(ctx, connect.NewRequest(&bloomeryv1.BackupRackRequest{Passphrase: passphrase}))
	ok(t, err)
	var data []byte
	for stream.Receive() {
		data = append(data, stream.Msg().GetData()...)
	}
	ok(t, errors.Join(stream.Err(), stream.Close()))
	for _, n := range r.Nodes() {
		n.Stop()
	}

	n := r.newNode("c1")
	_, err = coordinator.Restore(ctx, n.Config, bytes.NewReader(data), coordinator.RestoreOptions{Passphrase: passphrase, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	ok(t, err)
	n.Start()
	r.Join("c4")
	r.until("have two coordinators", func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		names := map[string]string{}
		for _, m := range s.GetNodes() {
			if !m.GetReachable() {
				return fmt.Errorf("%s: %s", m.GetName(), m.GetError())
			}
			names[m.GetName()] = m.GetAddress()
		}
		if len(names) != 2 || names["c1"] != n.Config.Cluster.String() || names["c4"] == "" || !s.GetQuorum() {
			return fmt.Errorf("the coordinators are %v, quorum %v", names, s.GetQuorum())
		}
		return nil
	})
	answer, err := r.Node("c4").Client().Machines.GetMachine(ctx, connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "m1"}))
	ok(t, err)
	if answer.Msg.GetMachine().GetBmc().GetUsername() != "admin" {
		t.Errorf("the machine is %v", answer.Msg.GetMachine())
	}
}
