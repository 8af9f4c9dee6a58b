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
	return group("machine", "List, install, release and switch machines",
		newMachineList(set), newMachineShow(set), newMachineAdd(set), newMachineInspect(set), newMachineInstall(set),
		newMachineRelease(set), newMachinePower(set), newMachineLock(set), newMachineUnlock(set))
}

func newMachineList(set *settings) *cobra.Command {
	var status, team string
	var labels map[string]string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List machines",
		Example: `  bloomery machine list
  bloomery machine list --status faulty
  bloomery machine list --team hardware --label model=r650 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request := &bloomeryv1.ListMachinesRequest{Filter: &bloomeryv1.MachineFilter{LockTeam: team, Labels: labels}}
			if status != "" {
				number, ok := bloomeryv1.MachineStatus_value["MACHINE_STATUS_"+strings.ToUpper(status)]
				if !ok || number == 0 {
					return usagef("--status %q: use one of %s", status, strings.Join(statusWords(), ", "))
				}
				request.Filter.Statuses = append(request.Filter.Statuses, bloomeryv1.MachineStatus(number))
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			all := &bloomeryv1.ListMachinesResponse{}
			for {
				page, err := ask(cmd.Context(), c.machines.ListMachines, request)
				if err != nil {
					return err
				}
				all.Machines = append(all.Machines, page.GetMachines()...)
				request.PageToken = page.GetNextPageToken()
				if request.PageToken == "" {
					break
				}
			}
			return set.printMessage(cmd.OutOrStdout(), all, func(w io.Writer) {
				row(w, "NAME", "STATUS", "NETWORK", "ADDRESS", "IMAGE", "LOCK", "JOB")
				for _, m := range all.GetMachines() {
					row(w, m.GetName(), enumWord("MACHINE_STATUS_", m.GetStatus()), m.GetNetwork(), m.GetAddress(), m.GetImage(), m.GetLock().GetTeam(), m.GetJobId())
				}
			})
		},
	}
	cmd.Flags().StringVar(&status, "status", "", "only machines with this status: "+strings.Join(statusWords(), ", "))
	cmd.Flags().StringVar(&team, "team", "", "only machines that this team has locked")
	cmd.Flags().StringToStringVar(&labels, "label", nil, "only machines with this label, key=value; may be repeated")
	return cmd
}

func statusWords() []string {
	var words []string
	for number := int32(1); ; number++ {
		if _, ok := bloomeryv1.MachineStatus_name[number]; !ok {
			return words
		}
		words = append(words, enumWord("MACHINE_STATUS_", bloomeryv1.MachineStatus(number)))
	}
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
		}
		row(w, "UUID", m.GetUuid())
		row(w, "MACs", strings.Join(m.GetMacs(), ", "))
		row(w, "BMC", m.GetBmc().GetAddress())
		row(w, "Switch port", m.GetSwitchPort().GetSwitch()+" "+m.GetSwitchPort().GetPort())
		row(w, "Network", m.GetNetwork())
		row(w, "Address", m.GetAddress())
		row(w, "Image", m.GetImage())
		row(w, "Disk", m.GetDiskSerial())
		row(w, "Job", m.GetJobId())
		for _, disk := range m.GetInventory().GetFields()["disks"].GetListValue().GetValues() {
			fields := disk.GetStructValue().GetFields()
			row(w, "Has disk", fmt.Sprintf("%s  %s  %s  serial %s", fields["name"].GetStringValue(),
				bytesText(int64(fields["size_bytes"].GetNumberValue())), fields["model"].GetStringValue(), fields["serial"].GetStringValue()))
		}
	})
}

func newMachineAdd(set *settings) *cobra.Command {
	machine := &bloomeryv1.Machine{Bmc: &bloomeryv1.BMC{}, SwitchPort: &bloomeryv1.SwitchPort{}}
	var passwordFile string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Record a machine that stands in the rack",
		Example: `  bloomery machine add node1 --mac 52:54:00:00:00:01 --uuid 6f1c… \
    --bmc 10.65.0.11:623 --bmc-user admin --bmc-password-file bmc.secret \
    --switch tor1 --port Ethernet1 --label model=r650`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			machine.Name = args[0]
			if passwordFile != "" {
				password, err := readSecret(passwordFile, cmd.InOrStdin())
				if err != nil {
					return err
				}
				machine.Bmc.Password = password
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.CreateMachine, &bloomeryv1.CreateMachineRequest{Machine: machine})
			if err != nil {
				return err
			}
			return set.printMachine(cmd.OutOrStdout(), answer.GetMachine())
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&machine.Macs, "mac", nil, "MAC address of a NIC that netboots; may be repeated")
	flags.StringVar(&machine.Uuid, "uuid", "", "SMBIOS system UUID")
	flags.StringVar(&machine.Bmc.Address, "bmc", "", "BMC address, host:port")
	flags.StringVar(&machine.Bmc.Username, "bmc-user", "", "BMC user")
	flags.StringVar(&passwordFile, "bmc-password-file", "", "file with the BMC password; - reads standard input")
	flags.StringVar(&machine.SwitchPort.Switch, "switch", "", "switch that the machine is cabled to")
	flags.StringVar(&machine.SwitchPort.Port, "port", "", "switch port, for example Ethernet1")
	flags.StringToStringVar(&machine.Labels, "label", nil, "label key=value; may be repeated")
	return cmd
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
	cmd := oneThing(set, &cobra.Command{
		Use:     "lock NAME --team T --reason R",
		Short:   "Keep every job away from a machine",
		Example: `  bloomery machine lock node1 --team anti-ddos --reason "scans 203.0.113.0/24"`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return needed(cmd, "team", "reason") },
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Machine, error) {
		answer, err := ask(ctx, c.machines.LockMachine, &bloomeryv1.LockMachineRequest{Name: name, Team: team, Reason: reason})
		return answer.GetMachine(), err
	}, set.printMachine)
	cmd.Flags().StringVar(&team, "team", "", "team that locks it")
	cmd.Flags().StringVar(&reason, "reason", "", "why")
	return cmd
}

func newMachineUnlock(set *settings) *cobra.Command {
	var team string
	cmd := oneThing(set, &cobra.Command{
		Use:     "unlock NAME --team T",
		Short:   "Remove a team's lock",
		Example: `  bloomery machine unlock node1 --team anti-ddos`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return needed(cmd, "team") },
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.Machine, error) {
		answer, err := ask(ctx, c.machines.UnlockMachine, &bloomeryv1.UnlockMachineRequest{Name: name, Team: team})
		return answer.GetMachine(), err
	}, set.printMachine)
	cmd.Flags().StringVar(&team, "team", "", "team that locked it")
	return cmd
}
