package handler

import (
	"context"
	"os"
)

// AsOwnPeer returns a context as ConnContext makes it for a connection of this process itself.
func AsOwnPeer(ctx context.Context) context.Context {
	return context.WithValue(ctx, peerKey{}, Peer{UID: uint32(os.Getuid())})
}
