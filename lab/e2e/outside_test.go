package e2e

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bloomery/firmware/bmc"
	"bloomery/lab"
	"bloomery/network/switchport"
)

// What only somebody with their hands on the wires could do goes past the coordinator: this test binary runs itself
// again inside one of the rack's network namespaces, with outsideEnv saying what to do there.
const outsideEnv = "BLOOMERY_E2E_OUTSIDE"

func TestMain(m *testing.M) {
	words := strings.Fields(os.Getenv(outsideEnv))
	if len(words) == 0 {
		os.Exit(m.Run())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := outside(ctx, words); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func outside(ctx context.Context, words []string) error {
	switch words[0] {
	case "dial":
		return dial(ctx, words[1], words[2])
	case "vlan":
		return setVLAN(ctx, words[1], words[2], words[3])
	case "netboot":
		return netboot(ctx, words[1], words[2])
	case "strangers":
		return strangers(ctx, words[1])
	}
	return fmt.Errorf("outside knows no %q", words[0])
}

// namespace is one of the rack's network namespaces: "" is the first coordinator's.
func (r *rack) namespace(part string) string { return "bloomery-" + r.name + part }

// inNamespace runs outside in one of the rack's namespaces.
func (r *rack) inNamespace(part string, words ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", r.namespace(part), os.Args[0])
	cmd.Env = append(os.Environ(), outsideEnv+"="+strings.Join(words, " "))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.New(strings.TrimSpace(string(out)))
	}
	return nil
}

// setPortVLAN moves a switch port by hand.
func (r *rack) setPortVLAN(port string, vlan int) {
	r.t.Helper()
	if err := r.inNamespace("", "vlan", r.stateDir, port, strconv.Itoa(vlan)); err != nil {
		r.t.Fatalf("set VLAN of %s by hand: %v", port, err)
	}
}

// bmcNetboot resets a machine into its firmware's network boot.
func (r *rack) bmcNetboot(machine string) {
	r.t.Helper()
	if err := r.inNamespace("", "netboot", r.stateDir, machine); err != nil {
		r.t.Fatalf("netboot %s by its BMC: %v", machine, err)
	}
}

// dial opens a TCP connection by one interface, or by any when it is "any".
func dial(ctx context.Context, iface, address string) error {
	dialer := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		if iface == "any" {
			return nil
		}
		var bound error
		return errors.Join(c.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), iface) }), bound)
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func setVLAN(ctx context.Context, stateDir, port, vlan string) error {
	number, err := strconv.ParseUint(vlan, 10, 12)
	if err != nil {
		return err
	}
	config, err := lab.LoadEffective(stateDir)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(stateDir, "switch", "ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	driver, err := switchport.DialGNMI(ctx, switchport.Options{Address: config.Switch.Address, CA: pool,
		Username: config.Switch.Username, Password: config.Switch.Password})
	if err != nil {
		return err
	}
	return errors.Join(driver.SetAccessVLAN(ctx, port, uint16(number)), driver.Close())
}

func netboot(ctx context.Context, stateDir, name string) error {
	config, err := lab.LoadEffective(stateDir)
	if err != nil {
		return err
	}
	machine, ok := config.Machine(name)
	if !ok {
		return fmt.Errorf("no machine %s", name)
	}
	driver, err := bmc.DialIPMI(ctx, bmc.Options{Address: machine.BMC.Address, Username: machine.BMC.Username, Password: machine.BMC.Password})
	if err != nil {
		return err
	}
	defer driver.Close(ctx)
	if err := driver.SetBootDevice(ctx, bmc.BootDevice{Target: bmc.BootNetwork, Once: true, UEFI: true}); err != nil {
		return err
	}
	return driver.Reset(ctx)
}
