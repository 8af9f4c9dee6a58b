package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bloomery/initramfs"
	"bloomery/internal/pki"
)

func newAgentImageCommand(set *settings) *cobra.Command {
	return group("agent-image", "Build the image that machines netboot", newAgentImageBuild(set), newAgentImageAssemble(set))
}

func newAgentImageBuild(set *settings) *cobra.Command {
	var options initramfs.Options
	cmd := &cobra.Command{
		Use:   "build --agent FILE --out DIR",
		Short: "Build the part of the agent image that is the same for every rack",
		Long: `Build takes Debian's kernel, drivers and tools (extracted into --sysroot, downloaded once) and the
agent, and makes kernel, initramfs and a manifest of contents and licences. The same inputs give the same bytes.

"bloomery agent-image assemble" makes a rack's own UKI of it.`,
		Example: `  bloomery agent-image build --agent out/bin/bloomery-agent --sysroot out/agent-sysroot --out out/agent-image`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "agent", "sysroot", "out"); err != nil {
				return err
			}
			options.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			if err := initramfs.Sysroot(cmd.Context(), options.Sysroot, options.Log); err != nil {
				return err
			}
			if _, err := initramfs.BuildBase(cmd.Context(), options); err != nil {
				return err
			}
			return set.printFiles(cmd.OutOrStdout(), filepath.Join(options.Out, initramfs.KernelFile),
				filepath.Join(options.Out, initramfs.BaseFile), filepath.Join(options.Out, initramfs.ManifestFile))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.AgentBinary, "agent", "", "bloomery-agent, built with CGO_ENABLED=0")
	flags.StringVar(&options.Sysroot, "sysroot", "", "folder for the extracted Debian packages; kept for the next build")
	flags.StringVar(&options.Out, "out", "", "folder for the results")
	flags.BoolVar(&options.Debug, "debug", false, "leave a root shell on the console when the agent ends; never for production")
	return cmd
}

// agentConfig is /etc/bloomery/agent.json: what the agent of one rack must know before it can ask anybody.
type agentConfig struct {
	Coordinators []string  `json:"coordinators"`
	TimeURLs     []string  `json:"time_urls"`
	CA           string    `json:"ca"`
	ImageKey     string    `json:"image_key"`
	BuildDate    time.Time `json:"build_date"`
}

func newAgentImageAssemble(set *settings) *cobra.Command {
	var base, keys, out, commandLine string
	config := agentConfig{}
	cmd := &cobra.Command{
		Use:   "assemble --base DIR --pki DIR --coordinator URL --out DIR",
		Short: "Make a rack's own agent image: its coordinators, CA and image key added to the base",
		Example: `  bloomery agent-image assemble --base out/agent-image --pki /var/lib/bloomery/pki \
    --coordinator https://10.66.0.1:8443 --time-url http://10.66.0.1/time --out /var/lib/bloomery/agent-image`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "base", "pki", "coordinator", "out"); err != nil {
				return err
			}
			ca, err := os.ReadFile(filepath.Join(keys, pki.CACert))
			if err != nil {
				return fmt.Errorf("read the rack's CA: %w", err)
			}
			imageKey, err := os.ReadFile(filepath.Join(keys, imagePublicKey))
			if err != nil {
				return fmt.Errorf("read the rack's image key: %w", err)
			}
			config.CA, config.ImageKey = string(ca), strings.TrimSpace(string(imageKey))
			if config.BuildDate, err = buildDate(base); err != nil {
				return err
			}
			text, err := json.MarshalIndent(config, "", "  ")
			if err != nil {
				return err
			}
			result, err := initramfs.Assemble(cmd.Context(), initramfs.AssembleOptions{Base: base, Config: text, CommandLine: commandLine, Out: out})
			if err != nil {
				return err
			}
			return set.printFiles(cmd.OutOrStdout(), result.UKI, result.Kernel, result.Initramfs, result.Manifest)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&base, "base", "", "folder that \"bloomery agent-image build\" made")
	flags.StringVar(&keys, "pki", "", "folder that \"bloomery rack init\" made; its public files are read")
	flags.StringSliceVar(&config.Coordinators, "coordinator", nil, "coordinator's URL on the provisioning network; may be repeated")
	flags.StringSliceVar(&config.TimeURLs, "time-url", nil, "where the agent asks for the time before it can check certificates; may be repeated")
	flags.StringVar(&out, "out", "", "folder for the results, which netboot serves")
	flags.StringVar(&commandLine, "command-line", "", "kernel command line instead of the default")
	return cmd
}

// buildDate is the date of the base image: no clock that is right shows an earlier time.
func buildDate(base string) (time.Time, error) {
	text, err := os.ReadFile(filepath.Join(base, initramfs.ManifestFile))
	if err != nil {
		return time.Time{}, fmt.Errorf("read the base image's manifest: %w; make it with \"bloomery agent-image build\"", err)
	}
	var manifest initramfs.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return time.Time{}, fmt.Errorf("read the base image's manifest: %w", err)
	}
	if manifest.BuildDate.IsZero() {
		return time.Time{}, errors.New("the base image's manifest has no build date")
	}
	return manifest.BuildDate, nil
}

// printFiles lists files with their sizes.
func (s *settings) printFiles(w io.Writer, paths ...string) error {
	type file struct {
		Path  string `json:"path"`
		Bytes int64  `json:"bytes"`
	}
	var files []file
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		files = append(files, file{path, info.Size()})
	}
	return s.printValue(w, files, func(w io.Writer) {
		for _, f := range files {
			row(w, bytesText(f.Bytes), f.Path)
		}
	})
}
