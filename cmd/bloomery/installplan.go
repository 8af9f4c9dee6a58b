package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/partition/layout"
)

// installLayout are the flags of an install onto disks of the customer's own layout.
type installLayout struct {
	file    string
	secrets []string
	plan    bool
}

func (l *installLayout) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&l.file, "layout", "", "disk layout for a rootfs image (see \"bloomery layout --help\"); - reads standard input")
	flags.StringArrayVar(&l.secrets, "secret", nil, "NAME=FILE: the layout's secret NAME is the first line of FILE; may be repeated")
	flags.BoolVar(&l.plan, "plan", false, "show what would be destroyed and created, and do nothing")
}

// read puts the layout and its secrets into an install's request.
func (l *installLayout) read(spec *bloomeryv1.InstallSpec, stdin io.Reader) error {
	if l.file != "" {
		data, err := readLimited(l.file, stdin, layout.MaxLayoutSize)
		if err != nil {
			return fmt.Errorf("--layout: %w", err)
		}
		if len(data) == 0 {
			return fmt.Errorf("--layout: %s is empty", l.file)
		}
		spec.Layout = data
	}
	for _, text := range l.secrets {
		name, file, ok := strings.Cut(text, "=")
		if !ok || name == "" || file == "" {
			// What was given may be the secret itself.
			return usagef("--secret takes NAME=FILE, so that the secret stands in a file")
		}
		if spec.GetSecrets()[name] != nil {
			return usagef("--secret %s is given twice", name)
		}
		secret, err := readSecret(file, stdin)
		if err != nil {
			return fmt.Errorf("--secret %s: %w", name, err)
		}
		if spec.Secrets == nil {
			spec.Secrets = map[string][]byte{}
		}
		spec.Secrets[name] = []byte(secret)
	}
	return nil
}

// show prints what an install would do.
func (l *installLayout) show(cmd *cobra.Command, set *settings, name string, spec *bloomeryv1.InstallSpec) error {
	c, err := set.connect()
	if err != nil {
		return err
	}
	answer, err := ask(cmd.Context(), c.machines.PlanInstall, &bloomeryv1.PlanInstallRequest{Name: name, Spec: spec})
	if err != nil {
		return err
	}
	shown := struct {
		Plan  *layout.Plan      `json:"plan,omitempty"`
		Steps []json.RawMessage `json:"steps"`
	}{}
	if len(answer.GetPlan()) > 0 {
		if shown.Plan, err = decodePlan(answer.GetPlan()); err != nil {
			return err
		}
	}
	for _, step := range answer.GetSteps() {
		text, err := messageJSON(step)
		if err != nil {
			return err
		}
		shown.Steps = append(shown.Steps, text)
	}
	w := cmd.OutOrStdout()
	if set.output == "table" && shown.Plan != nil {
		if err := set.printPlan(w, shown.Plan); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	return set.printValue(w, shown, func(w io.Writer) {
		row(w, "STEP", "WHAT", "ON")
		for i, step := range answer.GetSteps() {
			row(w, fmt.Sprint(i+1), stepName(step), stepObject(step))
		}
	})
}

// stepObject is what a step works on, for people: a disk, an image, a network.
func stepObject(step *bloomeryv1.Step) string {
	disk := func(d *bloomeryv1.DiskRef) string {
		if d == nil {
			return ""
		}
		return "disk " + cmp.Or(d.GetSerial(), d.GetWwn())
	}
	switch spec := step.GetSpec().(type) {
	case *bloomeryv1.Step_Wipe:
		return disk(spec.Wipe.GetDisk())
	case *bloomeryv1.Step_WriteImage:
		return fmt.Sprintf("image %s, %s", spec.WriteImage.GetImage(), disk(spec.WriteImage.GetDisk()))
	case *bloomeryv1.Step_GrowRoot:
		return disk(spec.GrowRoot.GetDisk())
	case *bloomeryv1.Step_ApplyLayout:
		var disks []string
		for _, d := range spec.ApplyLayout.GetDisks() {
			disks = append(disks, disk(d))
		}
		return strings.Join(disks, ", ")
	case *bloomeryv1.Step_UnpackImage:
		return "image " + spec.UnpackImage.GetImage()
	case *bloomeryv1.Step_SeedPartition:
		return disk(spec.SeedPartition.GetDisk())
	case *bloomeryv1.Step_CloudInit:
		return disk(spec.CloudInit.GetDisk())
	case *bloomeryv1.Step_BootEntry:
		return disk(spec.BootEntry.GetDisk())
	case *bloomeryv1.Step_MovePort:
		return "network " + spec.MovePort.GetTo()
	}
	return ""
}

func decodePlan(data []byte) (*layout.Plan, error) {
	plan, err := layout.DecodePlan(data)
	if err != nil {
		return nil, fmt.Errorf("the coordinator's plan cannot be read; use a bloomery of its version: %w", err)
	}
	return plan, nil
}

func newJobPlan(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:   "plan ID",
		Short: "Show what an install with a layout makes of the machine's disks",
		Example: `  bloomery job plan 01j…
  bloomery job plan 01j… -o svg > disks.svg`,
		Annotations: map[string]string{formatsKey: "text json yaml svg"},
	}, func(ctx context.Context, c *client, id string) (*layout.Plan, error) {
		answer, err := ask(ctx, c.jobs.GetJobPlan, &bloomeryv1.GetJobPlanRequest{Id: id})
		if err != nil {
			return nil, err
		}
		return decodePlan(answer.GetPlan())
	}, set.printPlan)
}
