package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
	"bloomery/partition/wipe/certificate"
)

func newMachineWipeCertificates(set *settings) *cobra.Command {
	var save string
	cmd := &cobra.Command{
		Use:   "wipe-certificates NAME",
		Short: "List the signed records of the disks that were wiped in a machine",
		Long: `Wipe-certificates lists what was wiped in a machine, newest first: by which method, and what that amounts to in
the words of NIST SP 800-88. --save writes each as a file that "bloomery wipe-certificate verify" reads anywhere;
the rack itself keeps the last 16 of each disk. docs/wipe.md says what a certificate means.`,
		Example: `  bloomery machine wipe-certificates node1
  bloomery machine wipe-certificates node1 -o json
  bloomery machine wipe-certificates node1 --save /srv/certificates`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			all := &bloomeryv1.ListWipeCertificatesResponse{}
			for token := ""; ; {
				answer, err := ask(cmd.Context(), c.machines.ListWipeCertificates, &bloomeryv1.ListWipeCertificatesRequest{Name: args[0], PageToken: token})
				if err != nil {
					return err
				}
				all.Certificates = append(all.Certificates, answer.GetCertificates()...)
				if token = answer.GetNextPageToken(); token == "" {
					break
				}
			}
			if save != "" {
				if err := saveCertificates(save, all.GetCertificates()); err != nil {
					return err
				}
			}
			return set.printMessage(cmd.OutOrStdout(), all, func(w io.Writer) {
				row(w, "ENDED", "SERIAL", "WWN", "LEVEL", "METHOD", "WORTH", "RESULT")
				for _, c := range all.GetCertificates() {
					result := "wiped"
					if !c.GetSuccessful() {
						result = "failed"
					}
					row(w, secondText(c.GetEndedAt()), c.GetDisk().GetSerial(), c.GetDisk().GetWwn(), c.GetLevel(), c.GetMethod(), c.GetSanitization(), result)
				}
			})
		},
	}
	cmd.Flags().StringVar(&save, "save", "", "folder to write each certificate into, as ID.json")
	return cmd
}

func saveCertificates(dir string, all []*bloomeryv1.WipeCertificate) error {
	for _, w := range all {
		var text bytes.Buffer
		if err := json.Indent(&text, []byte(w.GetDocument()), "", "  "); err != nil {
			return fmt.Errorf("certificate %s: %w", w.GetId(), err)
		}
		text.WriteByte('\n')
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(w.GetId())+".json"), text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("save certificate %s: %w", w.GetId(), err)
		}
	}
	return nil
}

func newWipeCertificateCommand(set *settings) *cobra.Command {
	return group("wipe-certificate", "Check the signed record of a disk's wipe", newWipeCertificateVerify(set))
}

func newWipeCertificateVerify(set *settings) *cobra.Command {
	var ca string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a certificate's signature, without any coordinator",
		Long: `Verify reads a certificate that "bloomery machine wipe-certificates --save" wrote and checks that a coordinator of
the rack with this CA signed it and that nothing was changed since. It exits with 1 also when the certificate is
sound but says that the wipe failed.`,
		Example: `  bloomery wipe-certificate verify 1f3c-2.json --ca ca.crt`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ca == "" {
				return usagef("name the rack's CA certificate with --ca")
			}
			text, err := os.ReadFile(ca)
			if err != nil {
				return fmt.Errorf("read the rack's CA certificate: %w", err)
			}
			roots, err := pki.ParseCertificates(text)
			if err != nil {
				return fmt.Errorf("%s: %w", ca, err)
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read the certificate: %w", err)
			}
			c, err := certificate.Verify(data, roots)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := set.printValue(cmd.OutOrStdout(), c, func(w io.Writer) {
				row(w, "Signature", fmt.Sprintf("good: coordinator %s of rack %s, %s", c.Coordinator, c.Rack, c.Issued.Format(time.RFC3339)))
				row(w, "Machine", c.Machine.Name)
				row(w, "Disk", fmt.Sprintf("%s, serial %s, %d bytes", c.Disk.Model, c.Disk.Serial, c.Wipe.Bytes))
				row(w, "Method", string(c.Wipe.Method))
				row(w, "Worth", string(c.Wipe.Sanitization))
				row(w, "Ended", c.Wipe.Ended.UTC().Format(time.RFC3339))
			}); err != nil {
				return err
			}
			if !c.Successful {
				return fmt.Errorf("%s: the signature is good, and it says that the wipe failed: %s", args[0], c.Error)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "certificate of the rack's CA (ca.crt)")
	return cmd
}
