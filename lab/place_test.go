package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"bloomery/coordinator"
	"bloomery/firmware/bmc"
	"bloomery/lab/netns"
)

// TestCoordinatorConfig gives what Up writes to the program that reads it.
func TestCoordinatorConfig(t *testing.T) {
	for number, want := range map[int][]string{1: {"c1"}, 3: {"c1", "c2", "c3"}} {
		c := Default(1)
		c.Coordinators = number
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		var names []string
		seen := map[string]string{}
		for _, p := range c.places() {
			text, err := yaml.Marshal(coordinatorConfig(layout{"/rack"}, p))
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := coordinator.ParseConfig(text)
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			names = append(names, parsed.Node)
			if parsed.Cluster.IsValid() != (number > 1) {
				t.Errorf("%s of %d has the database address %s", parsed.Node, number, parsed.Cluster)
			}
			customer := parsed.Networks[2]
			if len(customer.PhoneHome) != number || customer.Gateway.String() != "10.77.0.1" {
				t.Errorf("%s: the customer's network is %+v", parsed.Node, customer)
			}
			// Nothing that listens or is kept is two coordinators' own.
			own := append([]string{parsed.Data, parsed.PKI, parsed.Listen.Boot, parsed.Listen.TFTP, parsed.Cluster.String(), p.namespace(), p.port(), p.oobPort(), p.gatewayPort(0)}, parsed.Listen.API...)
			for _, one := range append(own, parsed.Listen.PhoneHome...) {
				if other := seen[one]; other != "" && number > 1 {
					t.Errorf("%s and %s share %s", other, parsed.Node, one)
				}
				seen[one] = parsed.Node
			}
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Error(diff)
		}
	}
}

// TestThreeCoordinatorsNetworks brings the networks of a rack of three up, without their programs, and cuts one off from the devices.
func TestThreeCoordinatorsNetworks(t *testing.T) {
	c := testRack(fmt.Sprintf("w%d", os.Getpid()))
	c.Coordinators = 3
	st := up(t, c)
	c, err := LoadEffective(st.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	power := func(p place, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return netns.Do(p.namespace(), func() error {
			b := c.Machines[0].BMC
			d, err := bmc.DialIPMI(ctx, bmc.Options{Address: b.Address, Username: b.Username, Password: b.Password})
			if err != nil {
				return err
			}
			defer d.Close(ctx)
			_, err = d.PowerStatus(ctx)
			return err
		})
	}
	dial := func(namespace, address string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		conn, err := netns.Dial(ctx, namespace, "tcp4", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	for _, p := range c.places() {
		if err := power(p, 10*time.Second); err != nil {
			t.Errorf("%s cannot reach the BMC: %v", p.name(), err)
		}
		if err := dial(p.namespace(), c.Switch.Address); err != nil {
			t.Errorf("%s cannot reach the switch: %v", p.name(), err)
		}
	}
	if err := dial(customerNamespace(c.Name, "customer-a"), c.Switch.Address); err == nil {
		t.Error("a customer reaches the switch's gNMI server")
	}
	// Each reaches the others in band and out of band, where their databases will be.
	l, err := netns.Listen(t.Context(), c.places()[2].namespace(), "tcp4", ":9000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	third := c.places()[2]
	reach := func(from place) []bool {
		var reached []bool
		for _, host := range third.addresses() {
			reached = append(reached, dial(from.namespace(), net.JoinHostPort(host, "9000")) == nil)
		}
		return reached
	}
	if diff := cmp.Diff([]bool{true, true, true}, reach(c.places()[1])); diff != "" {
		t.Errorf("c2 reaches c3 by provisioning, out-of-band and customer's network: %s", diff)
	}
	client := NewClient(st.StateDir)
	if err := client.Fault(t.Context(), Fault{Kind: "port-down", Port: "oob2"}); err != nil {
		t.Fatal(err)
	}
	if err := power(c.places()[1], 2*time.Second); err == nil {
		t.Error("c2 reaches the BMC with its cable pulled")
	}
	if diff := cmp.Diff([]bool{true, false, true}, reach(c.places()[1])); diff != "" {
		t.Errorf("c2 reaches c3 with its out-of-band cable pulled: %s", diff)
	}
	if err := power(third, 10*time.Second); err != nil {
		t.Errorf("c3 cannot reach the BMC when c2's cable is pulled: %v", err)
	}
	if names := strings.Join(namespaces(c), " "); !strings.Contains(names, "-c3") || len(st.Coordinators) != 3 || st.Coordinators[1].Up {
		t.Errorf("namespaces %s, coordinators %+v", names, st.Coordinators)
	}
}
