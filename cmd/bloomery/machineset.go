package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// setTries bounds how often a change of labels is made again because somebody else changed the machine in between.
const setTries = 5

// recordFlags are what an operator can say of a machine, for "add" and "set".
type recordFlags struct {
	machine      *bloomeryv1.Machine
	passwordFile string
}

func newRecordFlags() *recordFlags {
	return &recordFlags{machine: &bloomeryv1.Machine{Bmc: &bloomeryv1.BMC{}, SwitchPort: &bloomeryv1.SwitchPort{}}}
}

func (f *recordFlags) register(flags *pflag.FlagSet) {
	m := f.machine
	flags.StringSliceVar(&m.Macs, "mac", nil, "MAC address of a NIC that netboots; may be repeated")
	flags.StringVar(&m.Uuid, "uuid", "", "SMBIOS system UUID")
	flags.StringVar(&m.Bmc.Address, "bmc", "", "BMC address, host:port")
	flags.StringVar(&m.Bmc.Username, "bmc-user", "", "BMC user")
	flags.StringVar(&f.passwordFile, "bmc-password-file", "", "file with the BMC password; - reads standard input")
	flags.StringVar(&m.SwitchPort.Switch, "switch", "", "switch that the machine is cabled to")
	flags.StringVar(&m.SwitchPort.Port, "port", "", "switch port, for example Ethernet1")
	flags.StringVar(&m.Rack, "rack", "", "rack that the machine stands in, as the data centre calls it")
	flags.Int32Var(&m.Unit, "unit", 0, "lowest rack unit that it fills, from 1 at the bottom")
	flags.StringVar(&m.Project, "project", "", "whose it is in the provider's own systems")
	flags.StringVar(&m.Notes, "notes", "", "free text, at most 4096 bytes")
	flags.StringVar(&m.Model, "model", "", "product name, instead of what the machine says")
	flags.StringVar(&m.Serial, "serial", "", "serial number, instead of what the machine says")
}

// readPassword reads the password's file, if one was named.
func (f *recordFlags) readPassword(stdin io.Reader) error {
	if f.passwordFile == "" {
		return nil
	}
	password, err := readSecret(f.passwordFile, stdin)
	f.machine.Bmc.Password = password
	return err
}

// mask names the fields whose flags were given.
func (f *recordFlags) mask(flags *pflag.FlagSet) (paths []string) {
	for _, field := range []struct{ path, flag string }{
		{"macs", "mac"}, {"uuid", "uuid"}, {"bmc.address", "bmc"}, {"bmc.username", "bmc-user"}, {"bmc.password", "bmc-password-file"},
		{"switch_port", "switch"}, {"switch_port", "port"}, {"rack", "rack"}, {"unit", "unit"}, {"project", "project"}, {"notes", "notes"},
		{"model", "model"}, {"serial", "serial"},
	} {
		if flags.Changed(field.flag) && !slices.Contains(paths, field.path) {
			paths = append(paths, field.path)
		}
	}
	return paths
}

func newMachineAdd(set *settings) *cobra.Command {
	f := newRecordFlags()
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Record a machine that stands in the rack",
		Example: `  bloomery machine add node1 --mac 52:54:00:00:00:01 --uuid 6f1c… \
    --bmc 10.65.0.11:623 --bmc-user admin --bmc-password-file bmc.secret \
    --switch tor1 --port Ethernet1 --rack A12 --unit 17 --label disks=new`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.machine.Name = args[0]
			if err := f.readPassword(cmd.InOrStdin()); err != nil {
				return err
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.CreateMachine, &bloomeryv1.CreateMachineRequest{Machine: f.machine})
			if err != nil {
				return err
			}
			return set.printMachine(cmd.OutOrStdout(), answer.GetMachine())
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().StringToStringVar(&f.machine.Labels, "label", nil, "label key=value; may be repeated")
	return cmd
}

func newMachineSet(set *settings) *cobra.Command {
	f := newRecordFlags()
	var labels []string
	var revision int64
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change what is on record of a machine; an empty value clears it",
		Example: `  bloomery machine set node1 --rack A12 --unit 17 --project acme
  bloomery machine set node1 --label disks=new --label broken-
  bloomery machine set node1 --bmc 10.65.0.12 --bmc-user admin --bmc-password-file bmc.secret
  bloomery machine set node1 --notes "" --revision 12`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.machine.Name = args[0]
			paths := f.mask(cmd.Flags())
			change, err := parseLabels(labels)
			if err != nil {
				return err
			}
			if len(paths) == 0 && len(labels) == 0 {
				return usagef("say what to change (see %q)", cmd.CommandPath()+" --help")
			}
			if err := f.readPassword(cmd.InOrStdin()); err != nil {
				return err
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			m, err := updateMachine(cmd.Context(), c, f.machine, paths, change, revision)
			if err != nil {
				return err
			}
			return set.printMachine(cmd.OutOrStdout(), m)
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().StringArrayVar(&labels, "label", nil, "set label key=value, or remove it by key-; may be repeated")
	cmd.Flags().Int64Var(&revision, "revision", 0, "change this revision of the record only (machine show tells it)")
	return cmd
}

// parseLabels reads key=value and key-; nil is a label to remove.
func parseLabels(texts []string) (map[string]*string, error) {
	change := map[string]*string{}
	for _, text := range texts {
		key, value, sets := strings.Cut(text, "=")
		name, removes := strings.CutSuffix(text, "-")
		switch {
		case sets && key != "":
			change[key] = &value
		case !sets && removes && name != "":
			change[name] = nil
		default:
			return nil, usagef("--label %q: use key=value to set it, key- to remove it", text)
		}
	}
	return change, nil
}

// updateMachine sends a change. Labels are one field to the coordinator: they are read, changed and written back against the revision
// that was read, and once more if somebody else was quicker.
func updateMachine(ctx context.Context, c *client, m *bloomeryv1.Machine, paths []string, labels map[string]*string, revision int64) (*bloomeryv1.Machine, error) {
	request := &bloomeryv1.UpdateMachineRequest{Machine: m, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, Revision: revision}
	if len(labels) > 0 {
		request.UpdateMask.Paths = append(request.UpdateMask.Paths, "labels")
	}
	for try := 1; ; try++ {
		if len(labels) > 0 {
			now, err := ask(ctx, c.machines.GetMachine, &bloomeryv1.GetMachineRequest{Name: m.GetName()})
			if err != nil {
				return nil, err
			}
			m.Labels = maps.Clone(now.GetMachine().GetLabels())
			if m.Labels == nil {
				m.Labels = map[string]string{}
			}
			for k, v := range labels {
				if v == nil {
					delete(m.Labels, k)
				} else {
					m.Labels[k] = *v
				}
			}
			if revision == 0 {
				request.Revision = now.GetMachine().GetRevision()
			}
		}
		answer, err := ask(ctx, c.machines.UpdateMachine, request)
		if connect.CodeOf(err) == connect.CodeAborted && revision == 0 && try < setTries {
			continue
		}
		return answer.GetMachine(), err
	}
}

func newMachineRemove(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:   "rm NAME",
		Short: "Take a machine off the record, with its inventories; its jobs and events stay",
		Long: `Rm forgets a machine that has left the rack. One that is locked, that a job drives or that runs for a
customer stays. Nothing is done to the machine itself.`,
		Example: `  bloomery machine rm node1`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.DeleteMachineResponse, error) {
		return ask(ctx, c.machines.DeleteMachine, &bloomeryv1.DeleteMachineRequest{Name: name})
	}, func(io.Writer, *bloomeryv1.DeleteMachineResponse) error { return nil })
}
