// Command runner takes the agent's place in the machine that guest tests run in: it loads the drivers, waits for the disks, runs every test
// binary of /guest/plan.json, writes what they say to the second serial port, and switches the machine off.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"bloomery/internal/kmod"
	"bloomery/lab/guest"
)

const (
	// resultPort is the tests' alone: the kernel and init write to the first one.
	resultPort = "/dev/ttyS1"
	// deviceTimeout is how long drivers and devices may take to come up.
	deviceTimeout = 60 * time.Second
	// grace is for a binary that its own -test.timeout does not end.
	grace = 15 * time.Second
)

func main() {
	out, err := openPort()
	if err == nil {
		if err = run(out); err != nil {
			fmt.Fprintf(out, "GUEST error %q\n", err.Error())
		} else {
			fmt.Fprintln(out, "GUEST done")
		}
		_ = unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // waits until all of it is sent, tcdrain(3)
	} else {
		fmt.Println("guest runner:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// openPort opens the result port raw: tests' marks are control characters.
func openPort() (*os.File, error) {
	port, err := os.OpenFile(resultPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	tio, err := unix.IoctlGetTermios(int(port.Fd()), unix.TCGETS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s: %w", resultPort, err), port.Close())
	}
	tio.Oflag &^= unix.OPOST
	tio.Cflag = tio.Cflag&^unix.CBAUD | unix.B115200
	if err := unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, tio); err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s: %w", resultPort, err), port.Close())
	}
	return port, nil
}

func run(out io.Writer) error {
	text, err := os.ReadFile(guest.PlanPath)
	if err != nil {
		return err
	}
	var p guest.Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return fmt.Errorf("%s: %w", guest.PlanPath, err)
	}
	for _, dir := range []string{"/run", "/tmp"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if err := os.Setenv("PATH", "/sbin:/usr/sbin:/bin:/usr/bin"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deviceTimeout)
	defer cancel()
	if err := devices(ctx, p.Disks); err != nil {
		return err
	}
	for _, pkg := range p.Packages {
		fmt.Fprintf(out, "GUEST begin %s\n", pkg.Name)
		result := "0"
		if err := runPackage(pkg, out); err != nil {
			result = err.Error()
		}
		fmt.Fprintf(out, "\nGUEST end %s %s\n", pkg.Name, result)
	}
	return nil
}

// devices loads the drivers as the agent does and waits for the disks.
func devices(ctx context.Context, serials []string) error {
	root, err := kmod.DefaultRoot()
	if err != nil {
		return err
	}
	modules, err := kmod.Open(root, kmod.Kernel{}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if _, err := modules.LoadDrivers(ctx); err != nil {
		return err
	}
	for {
		var missing error
		for _, serial := range serials {
			if _, err := guest.Find(serial); err != nil {
				missing = err
			}
		}
		if missing == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", missing, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func runPackage(pkg guest.PlanPackage, out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), guest.PackageTimeout+grace)
	defer cancel()
	cmd := exec.CommandContext(ctx, pkg.Binary, pkg.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = pkg.Dir, out, out
	cmd.WaitDelay = 5 * time.Second // a child of a test may hold the port
	return cmd.Run()
}
