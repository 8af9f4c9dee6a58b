package store

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// TestOldMachinesAreRecoded stores machines as the first release did, with more inventory than fits into one transaction.
func TestOldMachinesAreRecoded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	names := []string{"m1", "m2", "m3", "m4", "m5", "m6", "m7", "bare"}
	for i, name := range names {
		m := &bloomeryv1.Machine{Name: name, Macs: []string{"02:00:00:00:00:0" + name[1:2]}, Image: "debian-12", DiskSerial: "D1"}
		update(t, s, func(tx *Tx) error { return tx.CreateMachine(m, "secret-"+name) })
		if name != "bare" {
			product := map[string]any{"name": "R650", "serial": "S" + name}
			body, err := structpb.NewStruct(map[string]any{"product": product, "filler": strings.Repeat("x", 200<<10)})
			if err != nil {
				t.Fatal(err)
			}
			m.Inventory = body
		}
		old, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		update(t, s, func(tx *Tx) error {
			return tx.exec("UPDATE machines SET body = ?, changed = 0, updated = ? WHERE name = ?", old, 1000+i, name)
		})
	}
	for range 2 { // the second start finds nothing to do
		closed(t, s)
		s = open(t, dir)
		err := s.View(t.Context(), func(r *Reader) error {
			for i, name := range names {
				m, err := r.WithInventory(name)
				if err != nil {
					return err
				}
				if m.GetImage() != "debian-12" || m.GetDiskSerial() != "D1" || len(m.GetCustomerDisks()) != 1 || m.GetCustomerDisks()[0].GetSerial() != "D1" || len(m.GetMacs()) != 1 {
					t.Errorf("%s: %v", name, m)
				}
				if name == "bare" {
					if m.GetInventory() != nil || m.GetModel() != "" {
						t.Errorf("%s has an inventory", name)
					}
					continue
				}
				if m.GetModel() != "R650" || m.GetSerial() != "S"+name || len(m.GetInventory().GetFields()["filler"].GetStringValue()) != 200<<10 {
					t.Errorf("%s: model %q, serial %q", name, m.GetModel(), m.GetSerial())
				}
				history, err := r.Inventories(name)
				if err != nil {
					return err
				}
				if len(history) != 1 || !history[0].Taken.Equal(time.Unix(0, int64(1000+i))) {
					t.Errorf("%s: history %v", name, history)
				}
				if password, err := r.BMCPassword(name); err != nil || password != "secret-"+name {
					t.Errorf("%s: password %q %v", name, password, err)
				}
			}
			all, err := r.Machines()
			if len(all) != len(names) {
				t.Errorf("%d machines", len(all))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	closed(t, s)
}

func TestMachineChangesAreInOneOrder(t *testing.T) {
	s := open(t, t.TempDir())
	defer closed(t, s)
	var at MachineChange
	step := func(wantChanged, wantRemoved string, f func(tx *Tx) error) {
		t.Helper()
		update(t, s, f)
		err := s.View(t.Context(), func(r *Reader) error {
			changed, removed, err := r.MachineChanges(at)
			if err != nil {
				return err
			}
			var names []string
			for _, m := range changed {
				names = append(names, m.GetName())
			}
			if got := strings.Join(names, " "); got != wantChanged || strings.Join(removed, " ") != wantRemoved {
				t.Errorf("changed %q removed %q, want %q and %q", got, removed, wantChanged, wantRemoved)
			}
			at, err = r.LastMachineChange()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	save := func(tx *Tx, name string) error {
		m, err := tx.Machine(name)
		if err != nil {
			return err
		}
		return tx.SaveMachine(m)
	}
	step("a b", "", func(tx *Tx) error {
		if err := tx.CreateMachine(machine("a", "1"), ""); err != nil {
			return err
		}
		return tx.CreateMachine(machine("b", "2"), "")
	})
	step("b", "", func(tx *Tx) error { return save(tx, "b") })
	step("b a", "", func(tx *Tx) error {
		if err := save(tx, "b"); err != nil {
			return err
		}
		return save(tx, "a")
	})
	// The newest change is the one that goes: what comes after it still has a higher number.
	step("", "a", func(tx *Tx) error { return tx.DeleteMachine("a") })
	step("a", "", func(tx *Tx) error { return tx.CreateMachine(machine("a", "1"), "") })
	step("b", "a", func(tx *Tx) error {
		if err := tx.DeleteMachine("a"); err != nil {
			return err
		}
		return save(tx, "b")
	})
}
