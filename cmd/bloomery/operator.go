package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
)

func newOperatorCommand(set *settings) *cobra.Command {
	return group("operator", "Say who may use the rack", newOperatorAdd(set), newOperatorList(set), newOperatorRevoke(set), newOperatorRenew(set))
}

// roleOf reads a role as people write it.
func roleOf(text string) (bloomeryv1.Role, error) {
	number, ok := bloomeryv1.Role_value["ROLE_"+strings.ToUpper(text)]
	if !ok || number == 0 {
		return 0, usagef("--role %q: use viewer, operator, hardware, network or admin", text)
	}
	return bloomeryv1.Role(number), nil
}

func newOperatorAdd(set *settings) *cobra.Command {
	var role, out, csrFile string
	var teams []string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Give somebody a certificate with a role",
		Long: `Add puts an operator on record and writes what they need into one folder: a key that is made here and sent
nowhere, the certificate, the rack's CA and config.yaml. Give them the folder by a safe way.

With --csr the operator has made the key themselves (PEM or DER, PKCS #10, ECDSA P-256 or Ed25519) and the key never leaves them.

Roles: viewer reads; operator installs, releases, switches and locks machines and adds images; hardware records and
inspects machines; network locks machines and moves ports; admin does everything.`,
		Example: `  bloomery operator add bob --role hardware --out bob
  bloomery operator add eve --role network --team anti-ddos --csr eve.csr --out eve`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "role", "out"); err != nil {
				return err
			}
			wanted, err := roleOf(role)
			if err != nil {
				return err
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			k, err := newOperatorKit(out, args[0], csrFile)
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.access.AddOperator, &bloomeryv1.AddOperatorRequest{Operator: &bloomeryv1.Operator{Name: args[0], Role: wanted, Teams: teams}, Csr: k.csr})
			if err != nil {
				return errors.Join(err, k.forget())
			}
			if err := k.write(c.config, answer.GetCertificates(), answer.GetAuthorities()); err != nil {
				return fmt.Errorf("operator %s is on record, but the files could not be written; revoke and add them again: %w", args[0], err)
			}
			return set.printMessage(cmd.OutOrStdout(), answer.GetOperator(), func(w io.Writer) {
				fmt.Fprintf(w, "operator %s is %s; certificate and configuration are in %s\n", args[0], role, out)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&role, "role", "", "viewer, operator, hardware, network or admin")
	flags.StringArrayVar(&teams, "team", nil, "team in whose name the operator locks machines; may be repeated")
	flags.StringVar(&out, "out", "", "folder for the operator's files; made with mode 0700")
	flags.StringVar(&csrFile, "csr", "", "certificate request of the operator's own key")
	return cmd
}

// operatorKit is the folder of a new operator's files.
type operatorKit struct {
	dir, cert, key string
	csr            []byte
	signer         *ecdsa.PrivateKey
}

// newOperatorKit makes or reads the request. It never replaces a file.
func newOperatorKit(dir, name, csrFile string) (*operatorKit, error) {
	if err := pki.ValidName(name); err != nil {
		return nil, usagef("NAME: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	k := &operatorKit{dir: dir}
	k.cert, k.key = pki.OperatorFiles(dir, name)
	for _, path := range []string{k.cert, k.key, filepath.Join(dir, clientConfigFile)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s is already there: use another folder with --out", path)
		}
	}
	if csrFile != "" {
		data, err := os.ReadFile(csrFile)
		if err != nil {
			return nil, err
		}
		if block, _ := pem.Decode(data); block != nil {
			data = block.Bytes
		}
		if _, err := pki.ParseCSR(data); err != nil {
			return nil, fmt.Errorf("%s: %w", csrFile, err)
		}
		k.csr = data
		return k, nil
	}
	var err error
	if k.csr, k.signer, err = newRequest(); err != nil {
		return nil, err
	}
	// The key is on disk before anybody signs for it.
	return k, pki.WriteKey(k.key, k.signer)
}

func newRequest() ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, key, nil
}

// forget removes the key of a request that was refused.
func (k *operatorKit) forget() error {
	if k.signer == nil {
		return nil
	}
	return os.Remove(k.key)
}

func (k *operatorKit) write(mine clientConfig, chain, authorities [][]byte) error {
	ca := filepath.Join(k.dir, pki.CACert)
	config := clientConfig{Servers: mine.Servers, CA: pki.CACert, Cert: filepath.Base(k.cert), Key: filepath.Base(k.key), ServerName: mine.ServerName}
	text, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	return errors.Join(
		pki.Replace(k.cert, 0o644, pki.EncodeCertificates(chain)),
		pki.Replace(ca, 0o644, pki.EncodeCertificates(authorities)),
		pki.Replace(filepath.Join(k.dir, clientConfigFile), 0o600, text),
	)
}

func newOperatorList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List operators with their roles, revoked ones too",
		Example: `  bloomery operator list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.access.ListOperators, &bloomeryv1.ListOperatorsRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "NAME", "ROLE", "TEAMS", "ADDED BY", "CERTIFICATE UNTIL", "REVOKED")
				for _, o := range answer.GetOperators() {
					row(w, o.GetName(), enumWord("ROLE_", o.GetRole()), strings.Join(o.GetTeams(), ","), o.GetCreatedBy(), day(o.GetNotAfter()), day(o.GetRevokedAt()))
				}
			})
		},
	}
}

func newOperatorRevoke(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "revoke NAME",
		Short:   "End an operator's access at once, on all coordinators",
		Example: `  bloomery operator revoke bob`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.RevokeOperatorResponse, error) {
		return ask(ctx, c.access.RevokeOperator, &bloomeryv1.RevokeOperatorRequest{Name: name})
	}, func(w io.Writer, answer *bloomeryv1.RevokeOperatorResponse) error {
		return set.printMessage(w, answer.GetOperator(), func(w io.Writer) { fmt.Fprintf(w, "operator %s was revoked\n", answer.GetOperator().GetName()) })
	})
}

func newOperatorRenew(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "renew",
		Short: "Replace your own key and certificate, and learn the rack's CAs",
		Long: `Renew makes a new key, has it signed by the rack's present CA and replaces the files that the client
configuration names: key, certificate and CA. Role and teams stay. Do it before the certificate ends, and when the rack's
CA is being replaced ("bloomery rack ca show").`,
		Example: `  bloomery operator renew`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			if c.config.TokenFile != "" {
				return errors.New("a token is not renewed: add another one with \"bloomery token add\"")
			}
			csr, key, err := newRequest()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.access.RenewCertificate, &bloomeryv1.RenewCertificateRequest{Csr: csr})
			if err != nil {
				return err
			}
			if len(answer.GetCertificates()) == 0 || len(answer.GetAuthorities()) == 0 {
				return errors.New("the coordinator's answer holds no certificate")
			}
			leaf, err := x509.ParseCertificate(answer.GetCertificates()[0])
			if err != nil {
				return fmt.Errorf("certificate from the coordinator: %w", err)
			}
			if err := pki.Replace(c.config.CA, 0o644, pki.EncodeCertificates(answer.GetAuthorities())); err != nil {
				return err
			}
			if err := pki.WritePair(c.config.Cert, c.config.Key, answer.GetCertificates(), key); err != nil {
				return err
			}
			return set.printValue(cmd.OutOrStdout(), map[string]any{"name": leaf.Subject.CommonName, "not_after": leaf.NotAfter, "authorities": len(answer.GetAuthorities())}, func(w io.Writer) {
				fmt.Fprintf(w, "%s's new certificate is valid until %s\n", leaf.Subject.CommonName, leaf.NotAfter.UTC().Format("2006-01-02"))
			})
		},
	}
}

func newWhoAmI(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "whoami",
		Short:   "Show who you are to the rack, and your role",
		Example: `  bloomery whoami`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			who, err := ask(cmd.Context(), c.access.WhoAmI, &bloomeryv1.WhoAmIRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), who, func(w io.Writer) {
				kind := "operator"
				if who.GetToken() {
					kind = "token"
				}
				row(w, "Name", who.GetName()+" ("+kind+")")
				row(w, "Role", enumWord("ROLE_", who.GetRole()))
				row(w, "Teams", strings.Join(who.GetTeams(), ", "))
				row(w, "Valid until", day(who.GetExpiresAt()))
				row(w, "Rack", who.GetRack())
			})
		},
	}
}
