package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bloomery/images"
	"bloomery/internal/pki"
)

// Files that "rack init" makes beside those of package pki.
const (
	clientConfigFile = "config.yaml"
	imagePrivateKey  = "image.key"
	imagePublicKey   = "image.pub"
)

func newRackCommand(set *settings) *cobra.Command {
	return group("rack", "Make, grow, save and restore a rack", newRackInit(set), newRackStatus(set), newRackToken(set), newRackJoin(set), newRackRemoveNode(set), newRackCA(set),
		newRackRecover(set), newRackBackup(set), newRackRestore(set))
}

func newRackInit(set *settings) *cobra.Command {
	var dir string
	var sockets []string
	options := pki.InitOptions{}
	cmd := &cobra.Command{
		Use:   "init --dir DIR --name RACK --server-address ADDRESS",
		Short: "Make a rack's CA, server and first operator certificates and its image signing key",
		Long: `Init makes, in one folder that only its owner can read: the rack's CA and the agents' CA,
the coordinator's certificate, the first operator's certificate, the key pair that signs OS images,
and config.yaml, which "bloomery --config" takes. It never replaces a file.

The coordinator needs neither the operator's key nor image.key: move them to where operators work.`,
		Example: `  bloomery rack init --dir /var/lib/bloomery/pki --name rack12 --server-address 10.66.0.1 --server-address rack12.example.net`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "dir", "name", "server-address"); err != nil {
				return err
			}
			for _, file := range []string{clientConfigFile, imagePrivateKey, imagePublicKey} {
				if _, err := os.Lstat(filepath.Join(dir, file)); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s is already there: a rack was made in this folder; use another or remove it", filepath.Join(dir, file))
				}
			}
			if err := pki.InitRack(dir, options); err != nil {
				return fmt.Errorf("rack init: %w", err)
			}
			if _, err := images.GenerateKeyFiles(filepath.Join(dir, imagePrivateKey), filepath.Join(dir, imagePublicKey)); err != nil {
				return fmt.Errorf("make the image signing key: %w", err)
			}
			cert, key := pki.OperatorFiles("", options.OperatorName)
			config := clientConfig{CA: pki.CACert, Cert: cert, Key: key, ServerName: pki.ServerName, ImageKey: imagePrivateKey}
			for _, socket := range sockets {
				config.Servers = append(config.Servers, "unix:"+socket)
			}
			if len(sockets) == 0 {
				for _, address := range options.ServerAddresses {
					config.Servers = append(config.Servers, "https://"+net.JoinHostPort(address, "8443"))
				}
			}
			text, err := yaml.Marshal(config)
			if err != nil {
				return fmt.Errorf("make %s: %w", clientConfigFile, err)
			}
			path := filepath.Join(dir, clientConfigFile)
			if err := os.WriteFile(path, text, 0o600); err != nil {
				return err
			}
			return set.printValue(cmd.OutOrStdout(), map[string]string{"rack": options.Name, "dir": dir, "config": path}, func(w io.Writer) {
				row(w, "Rack", options.Name)
				row(w, "Keys in", dir)
				row(w, "Use it by", "export BLOOMERY_CONFIG="+path)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "", "folder for the keys; made with mode 0700")
	flags.StringVar(&options.Name, "name", "", "rack's name")
	flags.StringSliceVar(&options.ServerAddresses, "server-address", nil, "address or DNS name of a coordinator; may be repeated")
	flags.StringVar(&options.Node, "node", "", "first coordinator's name, as \"node\" in its configuration (default coordinator-1)")
	flags.StringVar(&options.OperatorName, "operator", "admin", "name of the first operator")
	flags.StringSliceVar(&sockets, "socket", nil, "coordinator's unix socket, when operators work on its host; may be repeated")
	return cmd
}
