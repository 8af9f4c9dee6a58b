package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newRackCA(set *settings) *cobra.Command {
	return group("ca", "Show and replace the rack's certificate authority", newRackCAShow(set), newRackCARotate(set))
}

func newRackCAShow(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show the CAs that the rack trusts",
		Example: `  bloomery rack ca show`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.rack.GetAuthorities, &bloomeryv1.GetAuthoritiesRequest{})
			if err != nil {
				return err
			}
			return set.printAuthorities(cmd.OutOrStdout(), answer, answer.GetAuthorities())
		},
	}
}

func newRackCARotate(set *settings) *cobra.Command {
	var phase string
	var force bool
	cmd := &cobra.Command{
		Use:   "rotate --phase begin|finish|abort",
		Short: "Go one phase further in the replacement of the rack's CA",
		Long: `Begin makes a new CA. A few seconds later it signs; the old one stays trusted. Coordinators and agents take
new certificates by themselves, an agent within 16 hours; each operator runs "bloomery operator renew". Make the agent image
anew with "bloomery agent-image assemble": its CA file holds both by then.

Finish drops the old CA. It is refused, with their names, while somebody needs it; --force cuts them off. Abort makes the old
CA sign again; finish then drops the new one.`,
		Example: `  bloomery rack ca rotate --phase begin
  bloomery rack ca rotate --phase finish`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			number, ok := bloomeryv1.RotateCARequest_Phase_value["PHASE_"+strings.ToUpper(phase)]
			if !ok || number == 0 {
				return usagef("--phase %q: use begin, finish or abort", phase)
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.rack.RotateCA, &bloomeryv1.RotateCARequest{Phase: bloomeryv1.RotateCARequest_Phase(number), Force: force})
			if err != nil {
				return err
			}
			return set.printAuthorities(cmd.OutOrStdout(), answer, answer.GetAuthorities())
		},
	}
	cmd.Flags().StringVar(&phase, "phase", "", "begin, finish or abort")
	cmd.Flags().BoolVar(&force, "force", false, "finish although certificates of the CA that goes are in use")
	return cmd
}

func (s *settings) printAuthorities(w io.Writer, message proto.Message, all []*bloomeryv1.Authority) error {
	return s.printMessage(w, message, func(w io.Writer) {
		row(w, "FINGERPRINT (SHA-256)", "SUBJECT", "UNTIL", "SIGNS")
		for _, a := range all {
			row(w, a.GetFingerprint(), a.GetSubject(), day(a.GetNotAfter()), fmt.Sprint(a.GetActive()))
		}
	})
}
