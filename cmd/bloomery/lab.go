package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/lab"
	"bloomery/lab/demo"
)

// labFlags say which virtual rack is meant.
type labFlags struct {
	rack, stateDir string
}

func (f *labFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.rack, "rack", "lab", "virtual rack's name")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "virtual rack's folder; "+lab.StateRoot+"/RACK when not given")
}

func (f *labFlags) dir() string {
	if f.stateDir != "" {
		return f.stateDir
	}
	return lab.DefaultStateDir(f.rack)
}

func newLabCommand(set *settings) *cobra.Command {
	return group("lab", "Run a virtual rack: QEMU machines, a switch, BMCs and a coordinator",
		newLabUp(set), newLabDown(), newLabStatus(set), newLabSSH(set), newLabConsole(), newLabPower(), newLabFault(),
		newLabCoordinator(), newLabDemo(), newLabSupervise())
}

func newLabUp(set *settings) *cobra.Command {
	var (
		flags       labFlags
		file        string
		number      int
		members     int
		agentImage  string
		coordinator string
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a virtual rack up and record its machines at its coordinators; the machines stay off",
		Example: `  bloomery lab up --agent-image out/agent-image
  bloomery lab up --machines 3 --agent-image out/agent-image
  bloomery lab up --coordinators 3 --agent-image out/agent-image
  bloomery lab up --file rack.yaml --agent-image out/agent-image`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := rackConfig(cmd, file, number, flags.rack)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("coordinators") {
				config.Coordinators = members
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			if coordinator == "" {
				coordinator = filepath.Join(filepath.Dir(self), "bloomeryd")
			}
			status, err := lab.Up(cmd.Context(), lab.UpOptions{
				Config: config, StateDir: flags.stateDir, Bloomery: self, Bloomeryd: coordinator, AgentImageBase: agentImage,
				Progress: func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) },
			})
			if err != nil {
				return err
			}
			if err := recordMachines(cmd.Context(), status, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return set.printValue(cmd.OutOrStdout(), status, func(w io.Writer) {
				row(w, "Rack", status.Rack)
				row(w, "Folder", status.StateDir)
				row(w, "Use it by", "export BLOOMERY_CONFIG="+status.ClientConfig)
			})
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&file, "file", "", "rack's description (docs/lab.md); a default rack when not given")
	cmd.Flags().IntVar(&number, "machines", 1, "machines of the default rack")
	cmd.Flags().IntVar(&members, "coordinators", 1, "coordinators of the rack, 1 or 3; instead of what --file says")
	cmd.Flags().StringVar(&agentImage, "agent-image", "out/agent-image", "folder that \"bloomery agent-image build\" made")
	cmd.Flags().StringVar(&coordinator, "bloomeryd", "", "coordinator's executable; the one beside bloomery when not given")
	return cmd
}

// rackConfig is the description in a file, or the default rack; --rack renames either.
func rackConfig(cmd *cobra.Command, file string, machines int, rack string) (lab.Config, error) {
	if file == "" {
		config := lab.Default(machines)
		config.Name = rack
		return config, nil
	}
	if cmd.Flags().Changed("machines") {
		return lab.Config{}, usagef("--machines: %s says which machines there are; use one or the other", file)
	}
	config, err := lab.LoadConfig(file)
	if cmd.Flags().Changed("rack") {
		config.Name = rack
	}
	return config, err
}

// recordMachines does what an operator does for each machine of a real rack: "bloomery machine add".
func recordMachines(ctx context.Context, status lab.Status, progress io.Writer) error {
	config, err := lab.LoadEffective(status.StateDir)
	if err != nil {
		return err
	}
	c, err := (&settings{configPath: status.ClientConfig}).connect()
	if err != nil {
		return err
	}
	for _, m := range config.Machines {
		record := &bloomeryv1.Machine{
			Name: m.Name, Uuid: m.UUID,
			Bmc:        &bloomeryv1.BMC{Address: m.BMC.Address, Username: m.BMC.Username, Password: m.BMC.Password},
			SwitchPort: &bloomeryv1.SwitchPort{Switch: config.Switch.Name, Port: m.NICs[0].Port},
			Labels:     map[string]string{"product": strings.ReplaceAll(strings.ToLower(m.Product), " ", "-")},
		}
		for _, nic := range m.NICs {
			record.Macs = append(record.Macs, nic.MAC)
		}
		if _, err := ask(ctx, c.machines.CreateMachine, &bloomeryv1.CreateMachineRequest{Machine: record}); err != nil {
			return fmt.Errorf("record machine %s: %w", m.Name, err)
		}
		fmt.Fprintf(progress, "recorded machine %s: MAC %s, BMC %s, port %s\n", m.Name, strings.Join(record.GetMacs(), " "), m.BMC.Address, m.NICs[0].Port)
	}
	return nil
}

func newLabDown() *cobra.Command {
	var flags labFlags
	var keepLogs bool
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Take a virtual rack down and leave nothing of it; works after a crash too",
		Example: `  bloomery lab down`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rack := flags.rack
			if flags.stateDir != "" {
				rack = ""
			}
			return lab.Down(cmd.Context(), lab.DownOptions{StateDir: flags.stateDir, Rack: rack, KeepLogs: keepLogs,
				Progress: func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }})
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&keepLogs, "keep-logs", false, "leave the logs of consoles and processes")
	return cmd
}

func newLabStatus(set *settings) *cobra.Command {
	var flags labFlags
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show a virtual rack's processes, machines and switch ports",
		Example: `  bloomery lab status -o json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := lab.GetStatus(cmd.Context(), flags.dir())
			if err != nil {
				return err
			}
			return set.printValue(cmd.OutOrStdout(), status, func(w io.Writer) {
				row(w, "Rack", status.Rack)
				row(w, "Supervisor", upWord(status.SupervisorUp))
				for _, c := range status.Coordinators {
					row(w, "Coordinator "+c.Name, fmt.Sprintf("%s, %s, ports %s and %s, namespace %s", upWord(c.Up), c.Address, c.Port, c.OOBPort, c.Namespace))
				}
				if status.Supervisor == nil {
					return
				}
				for _, m := range status.Supervisor.Machines {
					row(w, "Machine "+m.Name, fmt.Sprintf("power %s, BMC %s, port %s%s", onWord(m.On), m.BMC, strings.Join(m.Ports, " "), pulledWords(m.PulledDisks)))
				}
				for _, port := range status.Supervisor.Switch.Ports {
					row(w, "Port "+port.Name, fmt.Sprintf("VLAN %d, link %s", port.VLAN.Access, upWord(port.LinkUp)))
				}
			})
		},
	}
	flags.register(cmd)
	return cmd
}

func upWord(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func pulledWords(serials []string) string {
	if len(serials) == 0 {
		return ""
	}
	return ", disks pulled: " + strings.Join(serials, " ")
}

func onWord(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func newLabSSH(set *settings) *cobra.Command {
	var flags labFlags
	options := lab.SSHOptions{}
	cmd := &cobra.Command{
		Use:   "ssh MACHINE [-- COMMAND...]",
		Short: "Log in to an installed machine from its customer's network",
		Example: `  bloomery lab ssh m1 --identity ~/.ssh/id_ed25519
  bloomery lab ssh m1 --identity key -- uname -a`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() > 1 || cmd.ArgsLenAtDash() < 0 && len(args) > 1 {
				return usagef("usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := lab.GetStatus(cmd.Context(), flags.dir())
			if err != nil {
				return err
			}
			c, err := (&settings{configPath: status.ClientConfig}).connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.GetMachine, &bloomeryv1.GetMachineRequest{Name: args[0]})
			if err != nil {
				return err
			}
			prefix, err := netip.ParsePrefix(answer.GetMachine().GetAddress())
			if err != nil {
				return fmt.Errorf("machine %s has no address on a customer's network: install it first", args[0])
			}
			options.Address, options.Network, options.Command = prefix.Addr().String(), answer.GetMachine().GetNetwork(), args[1:]
			argv, err := lab.SSHCommand(flags.dir(), options)
			if err != nil {
				return err
			}
			return runAttached(cmd, argv)
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&options.User, "user", "debian", "login")
	cmd.Flags().StringVar(&options.Identity, "identity", "", "private key")
	return cmd
}

func newLabSupervise() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise STATEDIR",
		Short:  "Hold a virtual rack's switch, BMCs and machines; started by \"lab up\"",
		Hidden: true,
		Args:   exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Supervise(cmd.Context(), args[0], slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
}

func newLabDemo() *cobra.Command {
	var flags labFlags
	options := demo.Options{}
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "Play the main job in a virtual rack of its own: power-on to a customer's login",
		Example: `  bloomery lab demo --image-file out/images/debian-12 --agent-image out/agent-image --report out/demo.json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "image-file", "report"); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			options.Bloomery, options.StateDir = self, flags.dir()
			if _, err := os.Stat(options.StateDir); err == nil {
				return errors.New("a virtual rack is already in " + options.StateDir + ": take it down with \"bloomery lab down\" first")
			}
			options.Out, options.Progress = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return demo.Run(cmd.Context(), options)
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&options.ImageFile, "image-file", "", "OS image to install")
	cmd.Flags().StringVar(&options.AgentImage, "agent-image", "out/agent-image", "folder that \"bloomery agent-image build\" made")
	cmd.Flags().StringVar(&options.Report, "report", "", "JSON file to write")
	cmd.Flags().BoolVar(&options.Keep, "keep", false, "leave the rack up")
	return cmd
}
