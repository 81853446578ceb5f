package handler

import (
	"context"
	"fmt"
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/identity"
)

// Peer is the process at the other end of a unix socket, as the kernel vouches for it (SO_PEERCRED, unix(7)).
type Peer struct {
	UID uint32
	GID uint32
	PID int32
}

type peerKey struct{}

// ConnContext remembers who is at the other end of a connection of a unix socket. It is for http.Server's field of that
// name: without it, the handler takes every connection for one over TCP.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	peer, err := peerOf(uc)
	if err != nil {
		return ctx // a connection without a known peer needs a token
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

func peerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

func peerOf(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("asking for the peer's credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return Peer{}, fmt.Errorf("asking for the peer's credentials: %w", err)
	}
	return Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}

// identity is the peer by its user name, or its number when it has no name.
func (p Peer) identity() identity.Identity {
	name := strconv.FormatUint(uint64(p.UID), 10)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	return identity.Identity{Method: identity.Local, Name: name}
}
