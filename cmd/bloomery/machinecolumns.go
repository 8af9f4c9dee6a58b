package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

type machineColumn = column[*bloomeryv1.Machine]

// machineColumns is everything that a list of machines can show, in the order of -o wide and csv.
func machineColumns() []machineColumn {
	return []machineColumn{
		{"name", "NAME", (*bloomeryv1.Machine).GetName},
		{"status", "STATUS", func(m *bloomeryv1.Machine) string { return enumWord("MACHINE_STATUS_", m.GetStatus()) }},
		{"model", "MODEL", (*bloomeryv1.Machine).GetModel},
		{"serial", "SERIAL", (*bloomeryv1.Machine).GetSerial},
		{"position", "POSITION", positionText},
		{"project", "PROJECT", (*bloomeryv1.Machine).GetProject},
		{"network", "NETWORK", (*bloomeryv1.Machine).GetNetwork},
		{"address", "ADDRESS", (*bloomeryv1.Machine).GetAddress},
		{"image", "IMAGE", (*bloomeryv1.Machine).GetImage},
		{"lock", "LOCK", func(m *bloomeryv1.Machine) string { return m.GetLock().GetTeam() }},
		{"locked-by", "LOCKED BY", func(m *bloomeryv1.Machine) string { return m.GetLock().GetBy() }},
		{"locked-since", "LOCKED SINCE", func(m *bloomeryv1.Machine) string { return minuteText(m.GetLock().GetSince()) }},
		{"reason", "REASON", func(m *bloomeryv1.Machine) string { return m.GetLock().GetReason() }},
		{"job", "JOB", (*bloomeryv1.Machine).GetJobId},
		{"fault", "FAULT", (*bloomeryv1.Machine).GetFaultCode},
		{"fault-message", "FAULT MESSAGE", (*bloomeryv1.Machine).GetFaultMessage},
		{"disk", "DISK", customerDisksText},
		{"macs", "MACS", func(m *bloomeryv1.Machine) string { return strings.Join(m.GetMacs(), ",") }},
		{"uuid", "UUID", (*bloomeryv1.Machine).GetUuid},
		{"bmc", "BMC", func(m *bloomeryv1.Machine) string { return m.GetBmc().GetAddress() }},
		{"switch-port", "SWITCH PORT", switchPortText},
		{"labels", "LABELS", labelsText},
		{"notes", "NOTES", (*bloomeryv1.Machine).GetNotes},
		{"updated", "UPDATED", func(m *bloomeryv1.Machine) string { return minuteText(m.GetUpdatedAt()) }},
	}
}

// usualColumns is what a table shows unless it is told otherwise.
func usualColumns() []string {
	return []string{"name", "status", "model", "position", "network", "address", "image", "lock", "job"}
}

// chooseColumns finds columns by their names; a wrong name is a mistake in the call.
func chooseColumns(names []string) ([]machineColumn, error) {
	all := machineColumns()
	var chosen []machineColumn
	for _, name := range names {
		i := slices.IndexFunc(all, func(c machineColumn) bool { return c.name == name })
		if i < 0 {
			var words []string
			for _, c := range all {
				words = append(words, c.name)
			}
			return nil, usagef("--columns %q: use any of %s", name, strings.Join(words, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// knownColumns are those of a view that this program can show: the view may have been saved by a newer one.
func knownColumns(names []string) []machineColumn {
	var chosen []machineColumn
	for _, name := range names {
		if c, err := chooseColumns([]string{name}); err == nil {
			chosen = append(chosen, c...)
		}
	}
	return chosen
}

// shownColumns decides what a format shows: what was asked for, else what the view says, else the usual.
func shownColumns(output string, asked []machineColumn, view []string) []machineColumn {
	if len(asked) > 0 {
		return asked
	}
	if output == "wide" || output == "csv" {
		return machineColumns()
	}
	if columns := knownColumns(view); len(columns) > 0 {
		return columns
	}
	return knownColumns(usualColumns())
}

// positionText is rack/unit.
func positionText(m *bloomeryv1.Machine) string {
	if m.GetUnit() == 0 {
		return m.GetRack()
	}
	return fmt.Sprintf("%s/%d", m.GetRack(), m.GetUnit())
}

// customerDisksText names the disks that carry a customer's data by serial number, or WWN.
func customerDisksText(m *bloomeryv1.Machine) string {
	var names []string
	for _, disk := range m.GetCustomerDisks() {
		names = append(names, cmp.Or(disk.GetSerial(), disk.GetWwn()))
	}
	return strings.Join(names, ",")
}

func switchPortText(m *bloomeryv1.Machine) string {
	return strings.TrimSpace(m.GetSwitchPort().GetSwitch() + " " + m.GetSwitchPort().GetPort())
}

func labelsText(m *bloomeryv1.Machine) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m.GetLabels())) {
		all = append(all, k+"="+m.GetLabels()[k])
	}
	return strings.Join(all, ",")
}

// minuteText is a time in UTC.
func minuteText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02T15:04Z")
}

// compareMachines puts the answers of several racks into the order that each of them is in.
func compareMachines(order string) func(a, b *bloomeryv1.Machine) int {
	key, descending := strings.CutPrefix(order, "-")
	return func(a, b *bloomeryv1.Machine) int {
		c := 0
		switch key {
		case "status":
			c = cmp.Compare(a.GetStatus(), b.GetStatus())
		case "rack":
			c = cmp.Or(cmp.Compare(a.GetRack(), b.GetRack()), cmp.Compare(a.GetUnit(), b.GetUnit()))
		case "model":
			c = cmp.Compare(a.GetModel(), b.GetModel())
		case "project":
			c = cmp.Compare(a.GetProject(), b.GetProject())
		case "updated":
			c = timeOf(a.GetUpdatedAt()).Compare(timeOf(b.GetUpdatedAt()))
		}
		c = cmp.Or(c, cmp.Compare(a.GetName(), b.GetName()))
		if descending {
			return -c
		}
		return c
	}
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
