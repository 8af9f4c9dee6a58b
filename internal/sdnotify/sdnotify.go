// Package sdnotify tells systemd how a service of Type=notify is (sd_notify(3)).
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// timeout bounds a send: the socket's other end is systemd, which may be busy.
const timeout = 5 * time.Second

// Send sends a state such as "READY=1" to $NOTIFY_SOCKET; without one it does nothing. A name that begins with @ is abstract, as
// in package net.
func Send(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	err = conn.SetWriteDeadline(time.Now().Add(timeout))
	if err == nil {
		_, err = conn.Write([]byte(state))
	}
	if err := errors.Join(err, conn.Close()); err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	return nil
}
