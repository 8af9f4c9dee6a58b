package coordinator

import (
	"testing"

	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

const goodConfig = `data: /var/lib/bloomery
listen: {api: ["unix:/run/bloomery/api.sock", "10.66.0.1:8443"], boot: "10.66.0.1:80", tftp: "10.66.0.1:69", phone_home: ["10.77.0.1:80"]}
provisioning: {interface: prov0, address: 10.66.0.1/24, range: 10.66.0.100-10.66.0.199}
agent_image: /srv/agent
networks:
  - {name: provisioning, vlan: 100}
  - {name: customer-a, vlan: 200, prefix: 10.77.0.0/24, gateway: 10.77.0.1, dns: [10.77.0.1], range: 10.77.0.100-10.77.0.199, phone_home: "http://10.77.0.1/phone-home/"}
switches: [{name: tor1, driver: gnmi, address: "10.65.0.1:9339"}]
`

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig([]byte(goodConfig))
	must(t, err)
	if c.PKI != "/var/lib/bloomery/pki" || c.Node != DefaultNode || c.Cluster.IsValid() || len(c.Networks) != 2 || c.Provisioning == nil {
		t.Errorf("got %+v", c)
	}
	c, err = ParseConfig([]byte(goodConfig + "node: c2\ncluster: {address: \"[::ffff:10.64.0.2]:8444\"}\n"))
	must(t, err)
	if c.Node != "c2" || c.Cluster.String() != "10.64.0.2:8444" {
		t.Errorf("node %q at %v", c.Node, c.Cluster)
	}
	for _, bad := range []string{goodConfig + "node: C2\n", goodConfig + "cluster: {address: \"0.0.0.0:8444\"}\n", goodConfig + "cluster: {address: \"c1:8444\"}\n"} {
		if _, err := ParseConfig([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
	for _, bad := range []string{"", "data: x", goodConfig + "colour: red\n", goodConfig + "---\ndata: /x\n"} {
		if _, err := ParseConfig([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte("data: /x\nlisten: {api: [\"unix:/x\"]}\nnetworks: [{name: provisioning, vlan: 1}]"))
	f.Add([]byte("[]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if _, ok := c.network(ProvisioningNetwork); !ok {
			t.Error("accepted without a provisioning network")
		}
	})
}

func FuzzCheckReports(f *testing.F) {
	seed, err := proto.Marshal(&bloomeryv1.ReportRequest{BootId: "0123456789abcdef0123456789abcdef", Reports: []*bloomeryv1.Report{
		{Sequence: 1, Body: &bloomeryv1.Report_Started{Started: &bloomeryv1.StepStarted{}}},
		{Sequence: 2, Body: &bloomeryv1.Report_Progress{Progress: &bloomeryv1.Progress{Percent: 10}}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-3])
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &bloomeryv1.ReportRequest{}
		if proto.Unmarshal(data, r) != nil || checkReports(r) != nil {
			return
		}
		n := 0
		for _, b := range batches(r.GetReports()) {
			n += len(b)
		}
		if n != len(r.GetReports()) {
			t.Errorf("%d of %d reports are left", n, len(r.GetReports()))
		}
	})
}
