package cloudinit

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Volume labels by which cloud-init and cloudbase-init find a seed that is a filesystem of its own.
const (
	LabelNoCloud     = "CIDATA"
	LabelConfigDrive = "config-2"
)

// Volume gives the files of a seed's filesystem with that label, by their paths.
func Volume(label string, seed NoCloud) (map[string][]byte, error) {
	if len(seed.MetaData) == 0 {
		return nil, fmt.Errorf("make a %s volume: meta-data is empty", label)
	}
	switch label {
	case LabelNoCloud:
		return seed.files(), nil
	case LabelConfigDrive:
		return configDrive(seed)
	}
	return nil, fmt.Errorf("a seed's volume has the label %q: want %s or %s", clip(label), LabelNoCloud, LabelConfigDrive)
}

// configDrive is the seed as OpenStack's ConfigDrive has it (https://docs.openstack.org/nova/latest/user/metadata.html, version "latest").
func configDrive(seed NoCloud) (map[string][]byte, error) {
	const folder = "openstack/latest/"
	var meta struct {
		InstanceID    string   `yaml:"instance-id"`
		LocalHostname string   `yaml:"local-hostname"`
		PublicKeys    []string `yaml:"public-keys"`
	}
	if err := yaml.Unmarshal(seed.MetaData, &meta); err != nil {
		return nil, fmt.Errorf("make a ConfigDrive: read meta-data: %w", err)
	}
	keys := map[string]string{}
	for i, key := range meta.PublicKeys {
		keys[fmt.Sprintf("key-%d", i)] = key
	}
	files := map[string]any{folder + "meta_data.json": map[string]any{
		"uuid": meta.InstanceID, "hostname": meta.LocalHostname, "name": meta.LocalHostname, "public_keys": keys,
	}}
	if len(seed.VendorData) > 0 {
		files[folder+"vendor_data.json"] = map[string]any{"cloud-init": string(seed.VendorData)}
	}
	if len(seed.NetworkConfig) > 0 {
		network, err := networkData(seed.NetworkConfig)
		if err != nil {
			return nil, err
		}
		files[folder+"network_data.json"] = network
	}
	all := map[string][]byte{}
	for name, value := range files {
		data, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("make a ConfigDrive: %s: %w", name, err)
		}
		all[name] = append(data, '\n')
	}
	if len(seed.UserData) > 0 {
		all[folder+"user_data"] = seed.UserData
	}
	return all, nil
}

// networkData makes network_data.json of the network-config that NetworkV2 renders.
func networkData(config []byte) (map[string]any, error) {
	var v2 networkV2
	if err := yaml.Unmarshal(config, &v2); err != nil {
		return nil, fmt.Errorf("make a ConfigDrive: read network-config: %w", err)
	}
	links, networks, services := []any{}, []any{}, []any{}
	names := make([]string, 0, len(v2.Ethernets))
	for name := range v2.Ethernets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		nic := v2.Ethernets[name]
		links = append(links, map[string]any{"id": name, "type": "phy", "ethernet_mac_address": nic.Match.MAC})
		for i, text := range nic.Addresses {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("make a ConfigDrive: address of %s: %w", name, err)
			}
			family := "ipv4"
			if prefix.Addr().Is6() {
				family = "ipv6"
			}
			routes := []any{}
			for _, r := range nic.Routes {
				to, mask, _ := strings.Cut(r.To, "/")
				if mask == "0" {
					mask = to
				}
				routes = append(routes, map[string]any{"network": to, "netmask": mask, "gateway": r.Via})
			}
			networks = append(networks, map[string]any{"id": fmt.Sprintf("%s-%d", name, i), "link": name, "type": family,
				"ip_address": prefix.String(), "routes": routes})
		}
		if nic.Nameservers != nil {
			for _, address := range nic.Nameservers.Addresses {
				services = append(services, map[string]any{"type": "dns", "address": address})
			}
		}
	}
	return map[string]any{"links": links, "networks": networks, "services": services}, nil
}
