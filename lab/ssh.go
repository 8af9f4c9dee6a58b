package lab

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// SSHOptions are for SSHCommand.
type SSHOptions struct {
	// Address is the installed machine's on its customer's network.
	Address string
	// Network is the customer's; empty means the rack's first.
	Network string
	// User is "root" when empty, Identity a private key's file, or empty for ssh's own choice.
	User, Identity string
	// Command is run on the machine; empty opens a login.
	Command []string
}

// SSHCommand is the command line that logs in to an installed machine from the customer's network. Host
// keys are not kept: the lab's machines are installed anew all the time.
func SSHCommand(stateDir string, o SSHOptions) ([]string, error) {
	c, err := LoadEffective(stateDir)
	if err != nil {
		return nil, err
	}
	customers := c.customers()
	if len(customers) == 0 {
		return nil, errors.New("the rack has no customer network")
	}
	network := customers[0]
	if o.Network != "" {
		var ok bool
		if network, ok = c.network(o.Network); !ok || !network.Prefix.IsValid() {
			return nil, fmt.Errorf("the rack has no customer network %q", o.Network)
		}
	}
	if net.ParseIP(o.Address) == nil {
		return nil, fmt.Errorf("address %q: want the machine's IP address on network %s", o.Address, network.Name)
	}
	user := o.User
	if user == "" {
		user = "root"
	}
	if strings.HasPrefix(user, "-") {
		return nil, fmt.Errorf("user %q must not begin with a hyphen", user)
	}
	argv := []string{
		"ip", "netns", "exec", customerNamespace(c.Name, network.Name), "ssh",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5",
	}
	if o.Identity != "" {
		argv = append(argv, "-o", "IdentitiesOnly=yes", "-i", o.Identity)
	}
	argv = append(argv, "-l", user, o.Address)
	if len(o.Command) > 0 {
		argv = append(append(argv, "--"), o.Command...)
	}
	return argv, nil
}
