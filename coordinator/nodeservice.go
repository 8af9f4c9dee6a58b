package coordinator

import (
	"context"
	"crypto/x509"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// GetNodeStatus implements bloomeryv1connect.NodeServiceHandler.
func (c *Coordinator) GetNodeStatus(ctx context.Context, _ *connect.Request[bloomeryv1.GetNodeStatusRequest]) (*connect.Response[bloomeryv1.GetNodeStatusResponse], error) {
	return connect.NewResponse(&bloomeryv1.GetNodeStatusResponse{Node: c.ownStatus(ctx), Time: timestamppb.New(c.config.Now())}), nil
}

// nodeStatus asks another coordinator for its part of the status.
func (c *Coordinator) nodeStatus(ctx context.Context, n store.Node) (*bloomeryv1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	client, done := c.peer(n)
	defer done()
	sent := c.config.Now()
	answer, err := client.GetNodeStatus(ctx, connect.NewRequest(&bloomeryv1.GetNodeStatusRequest{}))
	if err != nil {
		return nil, err
	}
	node := answer.Msg.GetNode()
	if node == nil {
		node = nodeMessage(n)
	}
	back := c.config.Now()
	node.ClockOffsetSeconds = answer.Msg.GetTime().AsTime().Sub(sent.Add(back.Sub(sent) / 2)).Seconds()
	node.Reachable = true
	return node, nil
}

// ownStatus is what this coordinator knows of itself.
func (c *Coordinator) ownStatus(context.Context) *bloomeryv1.Node {
	node := &bloomeryv1.Node{Name: c.config.Node, Address: c.Store.Address(), Api: advertised(c.config), Reachable: true, Version: Version(), StartedAt: timestamppb.New(c.started)}
	problem := func(err error) {
		if err != nil && node.Error == "" {
			node.Error = err.Error()
		}
	}
	version, err := store.SchemaVersion()
	problem(err)
	node.SchemaVersion = int32(version)
	leaf, err := x509.ParseCertificate(c.Authority.Server().Certificate[0])
	problem(err)
	if err == nil {
		node.CertificateNotAfter = timestamppb.New(leaf.NotAfter)
	}
	position, err := c.Store.Position()
	problem(err)
	node.LogIndex = int64(position.Index)
	var disk unix.Statfs_t
	err = unix.Statfs(c.config.Data, &disk)
	problem(err)
	if err == nil {
		node.DiskFreeBytes, node.DiskTotalBytes = int64(disk.Bavail)*disk.Bsize, int64(disk.Blocks)*disk.Bsize
	}
	node.DatabaseBytes = sizeOf(filepath.Join(c.config.Data, "dqlite"))
	return node
}

// sizeOf adds up the files of a folder; files that go away meanwhile do not count.
func sizeOf(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}

func sortNodes(all []*bloomeryv1.Node) {
	slices.SortFunc(all, func(a, b *bloomeryv1.Node) int { return strings.Compare(a.GetName(), b.GetName()) })
}
