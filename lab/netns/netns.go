// Package netns makes named Linux network namespaces and runs code, listeners and dialers inside them.
// Names are those of `ip netns` (files under /run/netns), so its commands see what this package makes.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dir is where named namespaces are kept, as iproute2 keeps them (ip-netns(8)).
const Dir = "/run/netns"

// ErrNotExist is wrapped by every error that a missing namespace causes.
var ErrNotExist = errors.New("network namespace does not exist")

// ErrExists is wrapped by Create when the name is taken.
var ErrExists = errors.New("network namespace exists already")

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Path is the file that stands for the namespace.
func Path(name string) (string, error) {
	if !validName.MatchString(name) {
		return "", fmt.Errorf("network namespace name %q: want 1 to 63 letters, digits, dots, dashes or underscores", name)
	}
	return filepath.Join(Dir, name), nil
}

// Create makes a namespace and brings its loopback interface up. It needs CAP_SYS_ADMIN.
func Create(name string) error {
	path, err := Path(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create network namespace %s: %w", name, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	_ = f.Close() // nothing was written
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount(threadNS(), path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount on %s: %w", path, err)
		}
		return loopbackUp()
	})
	if err != nil {
		return errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), Delete(name))
	}
	return nil
}

// NoForwarding keeps the namespace from passing packets on between its interfaces, whatever the host does.
func NoForwarding(name string) error {
	err := Do(name, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) })
	if err != nil {
		return fmt.Errorf("switch forwarding off in network namespace %s: %w", name, err)
	}
	return nil
}

// Delete removes the namespace's name; the kernel frees the namespace when its last process and socket
// are gone. A name that does not exist is no error, nor is a file that a crash left without its mount.
func Delete(name string) error {
	path, err := Path(name)
	if err != nil {
		return err
	}
	// EINVAL: a plain file without a mount.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete network namespace %s: unmount: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return nil
}

// Exists says whether the name stands for a live namespace (and not for a file that a crash left).
func Exists(name string) bool {
	f, err := open(name)
	if err != nil {
		return false
	}
	_ = f.Close() // opened for reading only
	return true
}

// Do runs fn on a thread that is in the namespace and returns fn's error. Goroutines that fn starts are NOT in
// the namespace, sockets that fn opens stay in it for good. fn must not call runtime.UnlockOSThread.
func Do(name string, fn func() error) error {
	ns, err := open(name)
	if err != nil {
		return err
	}
	defer ns.Close()
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return fn()
	})
}

// onOwnThread runs fn on a locked thread that may change its namespace. The thread goes back to the scheduler only
// after it has returned to where it was; otherwise the goroutine ends locked, and the runtime ends the thread with it.
func onOwnThread(fn func() error) error {
	type outcome struct {
		err      error
		panicked any
	}
	done := make(chan outcome)
	go func() {
		var out outcome
		defer func() {
			out.panicked = recover()
			done <- out
		}()
		runtime.LockOSThread()
		home, err := os.Open(threadNS())
		if err != nil {
			runtime.UnlockOSThread()
			out.err = fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer home.Close()
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
		}()
		out.err = fn()
	}()
	out := <-done
	if out.panicked != nil {
		panic(out.panicked)
	}
	return out.err
}

func threadNS() string {
	return fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
}

func open(name string) (*os.File, error) {
	path, err := Path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s: %w", name, ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, errors.Join(fmt.Errorf("look at network namespace %s: %w", name, err), f.Close())
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("network namespace %s: %s is a plain file: %w", name, path, ErrNotExist), f.Close())
	}
	return f, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}
