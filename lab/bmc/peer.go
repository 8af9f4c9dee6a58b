package bmc

import (
	"context"
	"net/netip"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

type peerKey struct{}

// Peer is who sent the command in whose context a Power method is called; false for what did not come over the network.
func Peer(ctx context.Context) (netip.AddrPort, bool) {
	peer, ok := ctx.Value(peerKey{}).(netip.AddrPort)
	return peer, ok
}

// withPeer puts the address of the session's other end into the context.
func withPeer(next handlers.Handler) handlers.Handler {
	return handlers.HandlerFunc(func(ctx context.Context, hctx *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
		if hctx != nil && hctx.Session != nil && hctx.Session.GetAddr() != nil {
			if peer, err := netip.ParseAddrPort(hctx.Session.GetAddr().String()); err == nil {
				ctx = context.WithValue(ctx, peerKey{}, peer)
			}
		}
		return next.Handle(ctx, hctx, data)
	})
}
