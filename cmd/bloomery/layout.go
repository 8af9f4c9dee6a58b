package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/partition/layout"
)

// maxInventory is the longest inventory file that is read, in bytes.
const maxInventory = 4 << 20

func newLayoutCommand(set *settings) *cobra.Command {
	return group("layout", "Check and convert disk layouts", newLayoutCheck(set), newLayoutConvert(set), newLayoutSchema())
}

func newLayoutCheck(set *settings) *cobra.Command {
	var machine, inventory, image string
	cmd := &cobra.Command{
		Use:   "check FILE (--machine NAME | --inventory FILE)",
		Short: "Show what a layout would make of a machine's disks; nothing is changed",
		Long: `Check plans a layout for the disks that a machine had at its last inventory and shows what an install would
destroy and create, in which order, with a drawing of the disks. With --image it also checks that the image
can start from that layout. Everything that stands against the layout is listed, with the field that is wrong.

FILE is a layout (bloomery.layout/v1, YAML or JSON), a Scaleway partitioning schema or Equinix Metal CPR; - reads
standard input. The inventory's file is what "bloomery machine show NAME -o json" prints.`,
		Example: `  bloomery layout check raid1.yaml --machine node1
  bloomery layout check raid1.yaml --machine node1 --image debian-12-rootfs
  bloomery layout check raid1.yaml --inventory node1.json -o svg > disks.svg`,
		Annotations: map[string]string{formatsKey: "text json yaml svg"},
		Args:        exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (machine == "") == (inventory == "") {
				return usagef("give one of --machine and --inventory (see %q)", cmd.CommandPath()+" --help")
			}
			if inventory == "-" && args[0] == "-" {
				return usagef("the layout and the inventory cannot both be standard input")
			}
			l, err := readLayout(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			if l.Origin != "" {
				fmt.Fprintf(cmd.ErrOrStderr(), "read as %s's format; \"bloomery layout convert %s\" prints the layout\n", l.Origin, args[0])
			}
			var hardware layout.Hardware
			if inventory != "" {
				hardware, err = readInventory(inventory, cmd.InOrStdin())
			} else {
				hardware, err = set.askInventory(cmd.Context(), machine)
			}
			if err != nil {
				return err
			}
			target := hardware.Target()
			if image != "" {
				if err := set.askImage(cmd.Context(), image, &target); err != nil {
					return err
				}
			}
			plan, err := layout.MakePlan(l, hardware.Disks, target)
			if err != nil {
				return fmt.Errorf("%s cannot be installed here\n%w", args[0], err)
			}
			return set.printPlan(cmd.OutOrStdout(), plan)
		},
	}
	cmd.Flags().StringVar(&machine, "machine", "", "plan for this machine's disks, as its last inventory has them")
	cmd.Flags().StringVar(&inventory, "inventory", "", "plan for the disks of this inventory; - reads standard input")
	cmd.Flags().StringVar(&image, "image", "", "check that this rootfs image of the rack's store can start from the layout")
	return cmd
}

func readLayout(file string, stdin io.Reader) (*layout.Layout, error) {
	data, err := readLimited(file, stdin, layout.MaxLayoutSize)
	if err != nil {
		return nil, err
	}
	l, err := layout.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s is no layout that can be used\n%w", file, err)
	}
	return l, nil
}

// readInventory reads an inventory, or a machine with one.
func readInventory(file string, stdin io.Reader) (layout.Hardware, error) {
	data, err := readLimited(file, stdin, maxInventory)
	if err != nil {
		return layout.Hardware{}, fmt.Errorf("--inventory: %w", err)
	}
	var machine struct {
		Inventory json.RawMessage `json:"inventory"`
	}
	if err := json.Unmarshal(data, &machine); err != nil {
		return layout.Hardware{}, fmt.Errorf("--inventory: %s: %w", file, err)
	}
	if machine.Inventory != nil {
		data = machine.Inventory
	}
	return decodeInventory(data)
}

func (s *settings) askInventory(ctx context.Context, name string) (layout.Hardware, error) {
	c, err := s.connect()
	if err != nil {
		return layout.Hardware{}, err
	}
	answer, err := ask(ctx, c.machines.GetMachine, &bloomeryv1.GetMachineRequest{Name: name})
	if err != nil {
		return layout.Hardware{}, err
	}
	if answer.GetMachine().GetInventory() == nil {
		return layout.Hardware{}, fmt.Errorf("machine %s has no inventory yet; \"bloomery machine inspect %s\" takes one", name, name)
	}
	data, err := json.Marshal(answer.GetMachine().GetInventory().AsMap())
	if err != nil {
		return layout.Hardware{}, fmt.Errorf("encode the inventory of %s: %w", name, err)
	}
	return decodeInventory(data)
}

func decodeInventory(data []byte) (layout.Hardware, error) {
	h, err := layout.DecodeHardware(data)
	if err == nil && len(h.Disks) == 0 {
		err = errors.New("the inventory has no disks")
	}
	return h, err
}

// askImage fills in what an image can start from.
func (s *settings) askImage(ctx context.Context, name string, target *layout.Target) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	answer, err := ask(ctx, c.images.GetImage, &bloomeryv1.GetImageRequest{Name: name})
	if err != nil {
		return err
	}
	manifest, err := images.DecodeManifest(answer.GetManifest())
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	if manifest.Kind != images.KindRootfs {
		return fmt.Errorf("--image: %s is an image of a whole disk, which brings its own layout; use one of kind rootfs", name)
	}
	target.Stacks, target.RootBytes = append([]string{}, manifest.Boot.RootStacks...), manifest.Size
	return nil
}

func (s *settings) printPlan(w io.Writer, plan *layout.Plan) error {
	switch s.output {
	case "json", "yaml":
		return s.printValue(w, plan, nil)
	case "svg":
		_, err := w.Write(plan.SVG())
		return err
	}
	_, err := io.WriteString(w, plan.Text()+"\n"+plan.Drawing())
	return err
}

func newLayoutConvert(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "convert FILE",
		Short: "Print a Scaleway or Equinix Metal partitioning as a layout",
		Long: `Convert reads a Scaleway partitioning schema or Equinix Metal CPR (or a layout) and prints it as bloomery.layout/v1.
Device names such as /dev/nvme1n1 are taken by order: the second of the machine's NVMe disks.`,
		Example: `  bloomery layout convert partitioning-schema.json > layout.yaml
  bloomery layout convert storage.json -o json`,
		Annotations: map[string]string{formatsKey: "yaml json"},
		Args:        exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := readLayout(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			if set.output == "json" {
				return set.printValue(cmd.OutOrStdout(), l, nil)
			}
			text, err := l.YAML()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

func newLayoutSchema() *cobra.Command {
	return &cobra.Command{
		Use:         "schema",
		Short:       "Print the JSON Schema of layouts, for editors and other programs",
		Example:     `  bloomery layout schema > layout.schema.json`,
		Annotations: map[string]string{formatsKey: "json"},
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(layout.Schema())
			return err
		},
	}
}
