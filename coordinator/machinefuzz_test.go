package coordinator

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// FuzzListMachines pages through three machines with whatever filter, order and token came from outside.
func FuzzListMachines(f *testing.F) {
	all := []*bloomeryv1.Machine{
		{Name: "a", Status: faulty, Rack: "A1", Unit: 3, Model: "R650", Labels: map[string]string{"k": "v"}},
		{Name: "b", Status: running, Project: "p", Lock: &bloomeryv1.Lock{Team: "abuse"}},
		{Name: "c", Status: available, Model: "R650", Macs: []string{"02:00:00:00:00:01"}},
	}
	for _, q := range []*bloomeryv1.ListMachinesRequest{
		{}, {OrderBy: "-rack", Filter: &bloomeryv1.MachineFilter{Model: "r650"}}, {OrderBy: "updated", PageToken: "e30"},
		{Filter: &bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{99}, Unit: -4, Search: "02:"}},
	} {
		data, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		q := &bloomeryv1.ListMachinesRequest{}
		if proto.Unmarshal(data, q) != nil || checkFilter(q.GetFilter(), "filter") != nil {
			return
		}
		order, err := parseOrder(q.GetOrderBy())
		if err != nil {
			return
		}
		query, err := queryHash(q.GetFilter(), q.GetOrderBy())
		must(t, err)
		if _, err := parseToken(q.GetPageToken(), query); err != nil {
			q.PageToken = ""
		}
		after, err := parseToken(q.GetPageToken(), query)
		must(t, err)
		whole, next := page(all, q.GetFilter(), order, after, 1000)
		if next != nil {
			t.Error("a last page has a next one")
		}
		var paged []*bloomeryv1.Machine
		for range len(all) + 1 {
			some, next := page(all, q.GetFilter(), order, after, 1)
			paged = append(paged, some...)
			if next == nil {
				break
			}
			next.Query = query
			token, err := next.token()
			must(t, err)
			if after, err = parseToken(token, query); err != nil {
				t.Fatalf("a token of ours: %v", err)
			}
		}
		if !slices.Equal(whole, paged) {
			t.Errorf("one by one %v, at once %v", paged, whole)
		}
	})
}

// FuzzUpdateRecord takes whatever an operator says of a machine: what is accepted is in bounds and says the same a second time.
func FuzzUpdateRecord(f *testing.F) {
	for _, m := range []*bloomeryv1.Machine{
		{Uuid: "11111111-2222-3333-4444-555555555555", Macs: []string{"52-54-00-00-00-01"}, Bmc: &bloomeryv1.BMC{Address: "[::1]", Username: "u", Password: "p"}},
		{Rack: "A\x1b1", Unit: 99, Notes: "a\nb", Labels: map[string]string{"k": "v", "": ""}, SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: "Ethernet1"}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, "bmc")
		f.Add(data, "notes")
	}
	c := &Coordinator{config: Config{Switches: []Switch{{Name: "tor1"}}}}
	f.Fuzz(func(t *testing.T, data []byte, path string) {
		in := &bloomeryv1.Machine{}
		fields, err := maskedFields([]string{path})
		if proto.Unmarshal(data, in) != nil || err != nil {
			return
		}
		m := &bloomeryv1.Machine{Name: "m1", Status: running, Image: "i", JobId: "j"}
		for _, field := range fields {
			if field.take(c, m, in) != nil {
				return
			}
		}
		if m.GetName() != "m1" || m.GetStatus() != running || m.GetImage() != "i" || m.GetJobId() != "j" || m.GetBmc().GetPassword() != "" {
			t.Errorf("%s changed what is the coordinator's: %v", path, m)
		}
		again := proto.CloneOf(m)
		for _, field := range fields {
			if err := field.take(c, again, m); err != nil && field.path != "bmc.password" {
				t.Errorf("%s: its own record is refused: %v", field.path, err)
			}
		}
		if !proto.Equal(m, again) {
			t.Errorf("%s: %v became %v", path, m, again)
		}
	})
}
