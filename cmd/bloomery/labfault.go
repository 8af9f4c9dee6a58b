package main

import (
	"github.com/spf13/cobra"

	"bloomery/lab"
)

func newLabPower() *cobra.Command {
	var flags labFlags
	cmd := &cobra.Command{
		Use:       "power MACHINE on|off|reset",
		Short:     "Press a virtual machine's power button, past the coordinator",
		Example:   `  bloomery lab power m1 off`,
		Args:      exactArgs(2),
		ValidArgs: []string{"on", "off", "reset"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[1] {
			case "on", "off", "reset":
			default:
				return usagef("power %q: use on, off or reset", args[1])
			}
			return lab.NewClient(flags.dir()).Power(cmd.Context(), args[0], args[1])
		},
	}
	flags.register(cmd)
	return cmd
}

func newLabFault() *cobra.Command {
	var flags labFlags
	fault := lab.Fault{}
	cmd := &cobra.Command{
		Use:   "fault KIND",
		Short: "Make something go wrong",
		Long: `KIND is one of
  link-down, link-up      --machine: its cable is pulled
  port-down, port-up      --port
  swap-ports              --port --other-port: two cables are exchanged; again undoes it
  loss                    --port --drop --duplicate, probabilities from 0 to 1
  pull-plug               --machine: power is gone
  smart-warning           --machine --disk --bits: NVMe critical warning; 0 takes it away
  slow-disk               --machine --disk --bytes-per-second; 0 takes it away
  pull-disk               --machine --serial: the disk is taken out; a running machine's accesses to it fail at once
  insert-disk             --machine --serial: it is put in again, seen when the machine starts next
  bmc-stuck, bmc-ok       --machine`,
		Example: `  bloomery lab fault swap-ports --port Ethernet1 --other-port Ethernet2
  bloomery lab fault smart-warning --machine m1 --bits 4
  bloomery lab fault pull-disk --machine m1 --serial NVME2`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fault.Kind = args[0]
			return lab.NewClient(flags.dir()).Fault(cmd.Context(), fault)
		},
	}
	flags.register(cmd)
	f := cmd.Flags()
	f.StringVar(&fault.Machine, "machine", "", "machine")
	f.IntVar(&fault.NIC, "nic", 0, "number of the machine's NIC")
	f.IntVar(&fault.Disk, "disk", 0, "number of the machine's disk")
	f.StringVar(&fault.Serial, "serial", "", "serial of the machine's disk")
	f.Uint8Var(&fault.Bits, "bits", 0, "NVMe Critical Warning bits")
	f.Int64Var(&fault.BytesPerSecond, "bytes-per-second", 0, "disk's speed limit")
	f.StringVar(&fault.Port, "port", "", "switch port")
	f.StringVar(&fault.OtherPort, "other-port", "", "second switch port")
	f.Float64Var(&fault.Drop, "drop", 0, "probability that a frame is lost")
	f.Float64Var(&fault.Duplicate, "duplicate", 0, "probability that a frame comes twice")
	return cmd
}

func newLabCoordinator() *cobra.Command {
	var flags labFlags
	cmd := &cobra.Command{
		Use:   "coordinator kill|restart [NAME]",
		Short: "Kill one of the virtual rack's coordinators as a crash would, or start it again",
		Long:  "NAME is c1, c2 or c3, as \"bloomery lab status\" lists them; c1 when not given.",
		Example: `  bloomery lab coordinator kill
  bloomery lab coordinator restart c2`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usagef("usage: %s", cmd.UseLine())
			}
			return nil
		},
		ValidArgs: []string{"kill", "restart"},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 1 {
				name = args[1]
			}
			switch args[0] {
			case "kill":
				return lab.KillCoordinator(cmd.Context(), flags.dir(), name)
			case "restart":
				return lab.RestartCoordinator(cmd.Context(), flags.dir(), name)
			}
			return usagef("coordinator %q: use kill or restart", args[0])
		},
	}
	flags.register(cmd)
	return cmd
}
