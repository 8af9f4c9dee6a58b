package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newMachineCommand(set *settings) *cobra.Command {
	return group("machine", "List, record, install, release, lock and switch machines",
		newMachineList(set, nil), newMachineShow(set), newMachineAdd(set), newMachineSet(set), newMachineRemove(set), newMachineInspect(set),
		newMachineInstall(set), newMachineRelease(set), newMachinePower(set), newMachineLock(set), newMachineUnlock(set),
		newMachineInventory(set), newMachineDiff(set), newMachineWipeCertificates(set))
}

func newMachineShow(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:   "show NAME",
		Short: "Show what the rack knows of a machine",
		Example: `  bloomery machine show node1
  bloomery machine show node1 -o yaml`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Machine, error) {
		answer, err := ask(ctx, c.machines.GetMachine, &bloomeryv1.GetMachineRequest{Name: name})
		return answer.GetMachine(), err
	}, set.printMachine)
}

func (s *settings) printMachine(w io.Writer, m *bloomeryv1.Machine) error {
	return s.printMessage(w, m, func(w io.Writer) {
		row(w, "Name", m.GetName())
		row(w, "Status", enumWord("MACHINE_STATUS_", m.GetStatus()))
		if m.GetFaultCode() != "" {
			row(w, "Fault", m.GetFaultCode()+": "+m.GetFaultMessage())
		}
		if lock := m.GetLock(); lock != nil {
			row(w, "Locked", fmt.Sprintf("by %s for team %s: %s", lock.GetBy(), lock.GetTeam(), lock.GetReason()))
			row(w, "Locked since", minuteText(lock.GetSince()))
			if lock.GetNetwork() != "" {
				row(w, "Goes back to", lock.GetNetwork())
			}
		}
		row(w, "Model", m.GetModel())
		row(w, "Serial", m.GetSerial())
		row(w, "Position", positionText(m))
		row(w, "Project", m.GetProject())
		row(w, "Labels", labelsText(m))
		row(w, "UUID", m.GetUuid())
		row(w, "MACs", strings.Join(m.GetMacs(), ", "))
		row(w, "BMC", m.GetBmc().GetAddress())
		row(w, "Switch port", switchPortText(m))
		row(w, "Network", m.GetNetwork())
		row(w, "Address", m.GetAddress())
		row(w, "Image", m.GetImage())
		row(w, "Disk", customerDisksText(m))
		row(w, "Job", m.GetJobId())
		row(w, "Revision", fmt.Sprint(m.GetRevision()))
		for line := range strings.Lines(m.GetNotes()) {
			row(w, "Notes", strings.TrimSuffix(line, "\n"))
		}
		for _, disk := range m.GetInventory().GetFields()["disks"].GetListValue().GetValues() {
			fields := disk.GetStructValue().GetFields()
			row(w, "Has disk", fmt.Sprintf("%s  %s  %s  serial %s", fields["name"].GetStringValue(),
				bytesText(int64(fields["size_bytes"].GetNumberValue())), fields["model"].GetStringValue(), fields["serial"].GetStringValue()))
		}
	})
}

func newMachinePower(set *settings) *cobra.Command {
	operations := map[string]bloomeryv1.PowerOperation{
		"on": bloomeryv1.PowerOperation_POWER_OPERATION_ON, "off": bloomeryv1.PowerOperation_POWER_OPERATION_OFF,
		"reset": bloomeryv1.PowerOperation_POWER_OPERATION_RESET, "status": bloomeryv1.PowerOperation_POWER_OPERATION_STATUS,
	}
	return &cobra.Command{
		Use:   "power NAME on|off|reset|status",
		Short: "Switch a machine's power through its BMC",
		Example: `  bloomery machine power node1 status
  bloomery machine power node1 reset`,
		Args:      exactArgs(2),
		ValidArgs: []string{"on", "off", "reset", "status"},
		RunE: func(cmd *cobra.Command, args []string) error {
			operation, ok := operations[args[1]]
			if !ok {
				return usagef("power %q: use on, off, reset or status", args[1])
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.PowerMachine, &bloomeryv1.PowerMachineRequest{Name: args[0], Operation: operation})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				state := "off"
				if answer.GetOn() {
					state = "on"
				}
				row(w, args[0], state)
			})
		},
	}
}

func newMachineLock(set *settings) *cobra.Command {
	var team, reason string
	var quarantine bool
	cmd := oneThing(set, &cobra.Command{
		Use:   "lock NAME --team T --reason R",
		Short: "Keep every job away from a machine",
		Long: `Lock keeps every job away from a machine, and its power from everyone but the team, until the team
unlocks it. With --quarantine its switch port is moved to the quarantine network too, if the machine is seen
on it. The lock comes first: if the port cannot be moved the machine is locked all the same, and the same
command tries the move again.`,
		Example: `  bloomery machine lock node1 --team anti-ddos --reason "scans 203.0.113.0/24" --quarantine`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return needed(cmd, "team", "reason") },
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Machine, error) {
		answer, err := ask(ctx, c.machines.LockMachine, &bloomeryv1.LockMachineRequest{Name: name, Team: team, Reason: reason, Quarantine: quarantine})
		return answer.GetMachine(), err
	}, set.printMachine)
	cmd.Flags().StringVar(&team, "team", "", "team that locks it")
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	cmd.Flags().BoolVar(&quarantine, "quarantine", false, "also move its switch port to the quarantine network")
	return cmd
}

func newMachineUnlock(set *settings) *cobra.Command {
	var team string
	var keepPort bool
	cmd := oneThing(set, &cobra.Command{
		Use:   "unlock NAME --team T",
		Short: "Remove a team's lock, and move its port out of quarantine",
		Example: `  bloomery machine unlock node1 --team anti-ddos
  bloomery machine unlock node1 --team anti-ddos --keep-port`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return needed(cmd, "team") },
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Machine, error) {
		answer, err := ask(ctx, c.machines.UnlockMachine, &bloomeryv1.UnlockMachineRequest{Name: name, Team: team, KeepPort: keepPort})
		return answer.GetMachine(), err
	}, set.printMachine)
	cmd.Flags().StringVar(&team, "team", "", "team that locked it")
	cmd.Flags().BoolVar(&keepPort, "keep-port", false, "leave its port in quarantine, for a machine that is off")
	return cmd
}
