package cloudinit

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
)

// NoCloud is the four files of cloud-init's NoCloud datasource, as they stand on disk
// (https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html). Empty VendorData and NetworkConfig are not written.
type NoCloud struct {
	MetaData      []byte
	UserData      []byte
	VendorData    []byte
	NetworkConfig []byte
}

// MetaData renders meta-data. instanceID makes cloud-init treat the boot as a new machine's first when it differs from the last one's.
func MetaData(instanceID, hostname string, sshKeys []string) ([]byte, error) {
	if instanceID == "" || strings.ContainsAny(instanceID, "/\x00\n") || len(instanceID) > 128 {
		return nil, fmt.Errorf("instance id %q must have 1 to 128 characters and no slash", clip(instanceID))
	}
	if err := ValidateHostname(hostname); err != nil {
		return nil, err
	}
	keys := make([]string, 0, len(sshKeys))
	for i, key := range sshKeys {
		if err := ValidateSSHKey(key); err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		keys = append(keys, strings.TrimSpace(key))
	}
	return render("meta-data", struct {
		InstanceID    string   `yaml:"instance-id"`
		LocalHostname string   `yaml:"local-hostname"`
		PublicKeys    []string `yaml:"public-keys,omitempty"`
	}{instanceID, hostname, keys}, "")
}

type networkV2 struct {
	Version   int                   `yaml:"version"`
	Ethernets map[string]ethernetV2 `yaml:"ethernets"`
}

type ethernetV2 struct {
	Match struct {
		MAC string `yaml:"macaddress"`
	} `yaml:"match"`
	SetName     string    `yaml:"set-name"`
	DHCP4       bool      `yaml:"dhcp4"`
	DHCP6       bool      `yaml:"dhcp6"`
	AcceptRA    bool      `yaml:"accept-ra"`
	Addresses   []string  `yaml:"addresses"`
	Routes      []routeV2 `yaml:"routes,omitempty"`
	Nameservers *struct {
		Addresses []string `yaml:"addresses"`
	} `yaml:"nameservers,omitempty"`
}

type routeV2 struct {
	To  string `yaml:"to"`
	Via string `yaml:"via"`
}

// NetworkV2 renders network-config (version 2) for one NIC, found by MAC: a static address with its prefix length, an optional default
// gateway (the zero Addr is none) in the same prefix, and name servers. The NIC is named eth0, since cloud-init's systemd-networkd
// renderer matches by name as well as by MAC; the default route is written as a prefix, which releases before 23.x need. Router
// advertisements are off: addresses are the provider's to give.
func NetworkV2(mac net.HardwareAddr, address netip.Prefix, gateway netip.Addr, dns []netip.Addr) ([]byte, error) {
	if len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("MAC %q is not a unicast Ethernet address", mac)
	}
	if !address.IsValid() || address.Addr().IsUnspecified() || address.Addr().IsMulticast() {
		return nil, fmt.Errorf("address %q is not a host address with prefix length, such as 192.0.2.10/24", address)
	}
	nic := ethernetV2{SetName: "eth0", Addresses: []string{address.String()}}
	nic.Match.MAC = mac.String()
	if gateway.IsValid() {
		if !address.Contains(gateway) || gateway == address.Addr() {
			return nil, fmt.Errorf("gateway %s must be another address within %s", gateway, address.Masked())
		}
		to := "0.0.0.0/0"
		if gateway.Is6() {
			to = "::/0"
		}
		nic.Routes = []routeV2{{To: to, Via: gateway.String()}}
	}
	if len(dns) > 0 {
		nic.Nameservers = &struct {
			Addresses []string `yaml:"addresses"`
		}{}
		for _, server := range dns {
			if !server.IsValid() {
				return nil, errors.New("name server address is empty")
			}
			nic.Nameservers.Addresses = append(nic.Nameservers.Addresses, server.String())
		}
	}
	return render("network-config", networkV2{Version: 2, Ethernets: map[string]ethernetV2{"primary": nic}}, "")
}

// VendorOptions are the provider's other settings, all of which a customer's user-data may override.
type VendorOptions struct {
	// RootGrown spares cloud-init the search for space that the root filesystem has already taken.
	RootGrown bool
}

// VendorData renders the provider's vendor-data: settings, and a script by which the installed system tells one of phoneHomeURLs that it
// runs, with an empty POST. Without URLs there is no script. Either part may be empty, and so may all of it.
func VendorData(phoneHomeURLs []string, o VendorOptions) ([]byte, error) {
	type growpart struct {
		Mode string `yaml:"mode"`
	}
	var config struct {
		Growpart     *growpart `yaml:"growpart,omitempty"`
		ResizeRootfs *bool     `yaml:"resize_rootfs,omitempty"`
	}
	if o.RootGrown {
		off := false
		config.Growpart, config.ResizeRootfs = &growpart{Mode: "off"}, &off
	}
	settings, err := render("vendor-data", config, headerCloudConfig+"\n")
	if err != nil || len(phoneHomeURLs) == 0 {
		return settings, err
	}
	script, err := phoneHomeScript(phoneHomeURLs)
	if err != nil {
		return nil, err
	}
	return multipartOf([]mimePart{{"text/cloud-config", "settings", settings}, {"text/x-shellscript", "bloomery-phone-home", []byte(script)}})
}

// mimePart is a part of a multipart message, as cloud-init tells them apart.
type mimePart struct {
	contentType, name string
	body              []byte
}

// multipartOf joins parts as RFC 2046, section 5.1.3, has it. The boundary is fixed, so that the same parts give the same bytes; a part that
// held it would be cut, so that is an error.
func multipartOf(parts []mimePart) ([]byte, error) {
	const boundary = "==bloomery=="
	var out bytes.Buffer
	fmt.Fprintf(&out, "Content-Type: multipart/mixed; boundary=\"%s\"\nMIME-Version: 1.0\n\n", boundary)
	for _, p := range parts {
		if bytes.Contains(p.body, []byte(boundary)) {
			return nil, fmt.Errorf("render vendor-data: part %s holds the boundary %s", p.name, boundary)
		}
		fmt.Fprintf(&out, "--%s\nContent-Type: %s; charset=\"utf-8\"\nMIME-Version: 1.0\nContent-Transfer-Encoding: 8bit\nContent-Disposition: attachment; filename=\"%s\"\n\n", boundary, p.contentType, p.name)
		out.Write(p.body)
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "--%s--\n", boundary)
	return out.Bytes(), nil
}

func render(name string, value any, header string) ([]byte, error) {
	body, err := yaml.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return append([]byte(header), body...), nil
}
