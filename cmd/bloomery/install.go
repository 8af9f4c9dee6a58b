package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// waiting are the flags of every command that starts a job.
type waiting struct {
	wait bool
}

func (w *waiting) register(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&w.wait, "wait", "w", false, "show progress until the job has ended; its failure is the command's")
}

func newMachineInstall(set *settings) *cobra.Command {
	var (
		spec         = &bloomeryv1.InstallSpec{Disk: &bloomeryv1.DiskRef{}}
		waits        waiting
		userDataFile string
		keyFiles     []string
		layouts      installLayout
		evidence     string
	)
	cmd := &cobra.Command{
		Use:   "install NAME --image IMAGE --network NETWORK",
		Short: "Install an image onto an available machine and hand it to a customer's network",
		Long: `Install wipes the disks that it writes, puts the image onto them, writes the cloud-init seed, makes
the firmware start it and moves the machine's switch port to the customer's network.

An image of a disk goes onto one disk as it is. A rootfs image goes onto the partitions, arrays, encrypted and
logical volumes of a layout: --layout takes one, a Scaleway partitioning schema or Equinix Metal CPR; without it
the system gets one disk with an EFI system partition and a root filesystem. --plan shows what would be destroyed
and created.

The whole request is checked before the machine is touched.`,
		Example: `  bloomery machine install node1 --image debian-12 --network customer-a --ssh-key ~/.ssh/id_ed25519.pub --wait
  bloomery machine install node1 --image debian-12 --network customer-a --disk-serial S4EV0123 --user-data user.yaml
  bloomery machine install node1 --image debian-12-rootfs --network customer-a --layout raid1.yaml --plan
  bloomery machine install node1 --image debian-12-rootfs --network customer-a --layout luks.yaml --secret disk=passphrase.txt --ssh-key key.pub`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "image", "network"); err != nil {
				return err
			}
			switch evidence {
			case "phone-home":
				spec.Evidence = bloomeryv1.Evidence_EVIDENCE_PHONE_HOME
			case "ssh-port":
				spec.Evidence = bloomeryv1.Evidence_EVIDENCE_SSH_PORT
			default:
				return usagef("--evidence %q: use phone-home or ssh-port", evidence)
			}
			if userDataFile != "" {
				data, err := readLimited(userDataFile, cmd.InOrStdin(), 1<<20)
				if err != nil {
					return fmt.Errorf("--user-data: %w", err)
				}
				spec.UserData = data
			}
			for _, file := range keyFiles {
				data, err := readLimited(file, cmd.InOrStdin(), 64<<10)
				if err != nil {
					return fmt.Errorf("--ssh-key: %w", err)
				}
				for _, line := range strings.Split(string(data), "\n") {
					if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
						spec.SshKeys = append(spec.SshKeys, line)
					}
				}
			}
			if err := layouts.read(spec, cmd.InOrStdin()); err != nil {
				return err
			}
			if layouts.plan {
				if waits.wait {
					return usagef("--plan starts nothing that --wait could wait for")
				}
				return layouts.show(cmd, set, args[0], spec)
			}
			return set.startJob(cmd, waits, func(ctx context.Context, c *client, id string) (*bloomeryv1.Job, error) {
				answer, err := ask(ctx, c.machines.InstallMachine, &bloomeryv1.InstallMachineRequest{Name: args[0], Spec: spec, RequestId: id})
				return answer.GetJob(), err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&spec.Image, "image", "", "image in the rack's store (see \"bloomery image list\")")
	flags.StringVar(&spec.Network, "network", "", "customer's network that the switch port is moved to")
	flags.StringVar(&spec.Disk.Serial, "disk-serial", "", "serial of the disk to install on; the smallest that fits when neither is given")
	flags.StringVar(&spec.Disk.Wwn, "disk-wwn", "", "WWN of the disk to install on")
	flags.StringVar(&spec.Hostname, "hostname", "", "host name; the machine's name when not given")
	flags.StringVar(&userDataFile, "user-data", "", "cloud-init user-data file; - reads standard input")
	flags.StringSliceVar(&keyFiles, "ssh-key", nil, "file with OpenSSH public keys; may be repeated")
	flags.StringVar(&evidence, "evidence", "phone-home", "what shows that the system runs: phone-home or ssh-port")
	layouts.register(cmd)
	waits.register(cmd)
	return cmd
}

func newMachineInspect(set *settings) *cobra.Command {
	return startsJob(set, &cobra.Command{
		Use:     "inspect NAME",
		Short:   "Inventory and check a machine; a sound one becomes available",
		Example: `  bloomery machine inspect node1 --wait`,
	}, func(ctx context.Context, c *client, name, id string) (*bloomeryv1.Job, error) {
		answer, err := ask(ctx, c.machines.InspectMachine, &bloomeryv1.InspectMachineRequest{Name: name, RequestId: id})
		return answer.GetJob(), err
	})
}

func newMachineRelease(set *settings) *cobra.Command {
	return startsJob(set, &cobra.Command{
		Use:     "release NAME",
		Short:   "Take a machine back from its customer and wipe it",
		Example: `  bloomery machine release node1 --wait`,
	}, func(ctx context.Context, c *client, name, id string) (*bloomeryv1.Job, error) {
		answer, err := ask(ctx, c.machines.ReleaseMachine, &bloomeryv1.ReleaseMachineRequest{Name: name, RequestId: id})
		return answer.GetJob(), err
	})
}

// startsJob completes a command that starts a job on a machine and takes nothing but its name.
func startsJob(set *settings, cmd *cobra.Command, create func(ctx context.Context, c *client, name, id string) (*bloomeryv1.Job, error)) *cobra.Command {
	var waits waiting
	cmd.Args = exactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return set.startJob(cmd, waits, func(ctx context.Context, c *client, id string) (*bloomeryv1.Job, error) {
			return create(ctx, c, args[0], id)
		})
	}
	waits.register(cmd)
	return cmd
}

// startJob creates a job, repeating the call under one request id while no coordinator answers, and follows it if asked.
func (s *settings) startJob(cmd *cobra.Command, waits waiting, create func(context.Context, *client, string) (*bloomeryv1.Job, error)) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return fmt.Errorf("make a request id: %w", err)
	}
	id := hex.EncodeToString(random)
	var job *bloomeryv1.Job
	for try := 1; ; try++ {
		job, err = create(cmd.Context(), c, id)
		if err == nil {
			break
		}
		if connect.CodeOf(err) != connect.CodeUnavailable || try == 5 {
			return err
		}
		select {
		case <-time.After(time.Duration(try) * 500 * time.Millisecond):
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		}
	}
	if !waits.wait {
		return s.printJob(cmd.OutOrStdout(), job)
	}
	return s.follow(cmd, c, job.GetId())
}

// readSecret reads one line from a file that only its owner should be able to read.
func readSecret(path string, stdin io.Reader) (string, error) {
	data, err := readLimited(path, stdin, 4096)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s: is empty, want a password", path)
	}
	return secret, nil
}

// readLimited reads a file, or standard input for "-", of at most limit bytes.
func readLimited(path string, stdin io.Reader, limit int64) ([]byte, error) {
	reader := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		reader = file
	}
	data, err := io.ReadAll(io.LimitReader(reader, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, errors.New(path + ": is larger than " + bytesText(limit))
	}
	return data, nil
}
