package netboot

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestDHCPConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		field string
		edit  func(*DHCPConfig)
	}{
		{"address", func(c *DHCPConfig) { c.Address = netip.Prefix{} }},
		{"directory", func(c *DHCPConfig) { c.Directory = nil }},
		{"logger", func(c *DHCPConfig) { c.Logger = nil }},
		{"lease time", func(c *DHCPConfig) { c.LeaseTime = time.Second }},
		{"router", func(c *DHCPConfig) { c.Router = netip.MustParseAddr("10.67.0.1") }},
		{"dns", func(c *DHCPConfig) { c.DNS = []netip.Addr{netip.MustParseAddr("::1")} }},
		{"range", func(c *DHCPConfig) { c.Range.Last = netip.MustParseAddr("10.66.0.255") }},
		{"range", func(c *DHCPConfig) { c.Range.First = netip.MustParseAddr("10.66.0.1") }},
		{"range", func(c *DHCPConfig) { c.Range.First = netip.MustParseAddr("10.65.0.1") }},
		{"range", func(c *DHCPConfig) { c.Range = Range{c.Range.Last, c.Range.First} }},
		{"boot URL", func(c *DHCPConfig) { c.BootURL = "http://boot.example/boot/" }},
		{"boot URL", func(c *DHCPConfig) { c.BootURL = "https://10.66.0.1/boot/" }},
		{"boot URL", func(c *DHCPConfig) { c.BootURL = "http://10.66.0.1/boot" }},
	} {
		cfg := testDHCPConfig(wantedMachine())
		tt.edit(&cfg)
		if _, err := NewDHCPServer(cfg); err == nil || !strings.Contains(err.Error(), tt.field) {
			t.Errorf("got %v, want an error that names %q", err, tt.field)
		}
	}
}

func TestParseRange(t *testing.T) {
	r, err := ParseRange(" 10.66.0.100 - 10.66.0.199")
	if err != nil {
		t.Fatal(err)
	}
	diff(t, "10.66.0.100-10.66.0.199", r.String())
	for _, bad := range []string{"", "10.66.0.1", "a-b", "10.66.0.9-b", "10.66.0.9-10.66.0.1", "::1-::2"} {
		if _, err := ParseRange(bad); err == nil {
			t.Errorf("ParseRange(%q) did not fail", bad)
		}
	}
}

func TestObserverRateLimit(t *testing.T) {
	var got []Event
	o := newObserver(func(e Event) { got = append(got, e) })
	now := time.Now()
	for range eventBurst + 50 {
		o.tell(Event{Time: now})
	}
	o.tell(Event{Time: now.Add(time.Second)})
	if len(got) != eventBurst+1 || got[eventBurst].Suppressed != 50 {
		t.Errorf("%d events, the last after %d suppressed", len(got), got[len(got)-1].Suppressed)
	}
}
