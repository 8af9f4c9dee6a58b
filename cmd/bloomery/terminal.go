package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"bloomery/lab"
)

// escapeKey ends a console session: Ctrl-], as in telnet.
const escapeKey = 0x1d

func newLabConsole() *cobra.Command {
	var flags labFlags
	cmd := &cobra.Command{
		Use:     "console MACHINE",
		Short:   "Attach to a virtual machine's serial console; Ctrl-] ends it",
		Example: `  bloomery lab console m1`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			console, err := lab.NewClient(flags.dir()).Console(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer console.Close()
			if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
				old, err := term.MakeRaw(int(in.Fd()))
				if err != nil {
					return fmt.Errorf("switch the terminal to raw mode: %w", err)
				}
				defer term.Restore(int(in.Fd()), old)
			}
			done := make(chan error, 2)
			go func() { _, err := io.Copy(cmd.OutOrStdout(), console); done <- err }()
			go func() { done <- copyUntilEscape(console, cmd.InOrStdin()) }()
			select {
			case err := <-done:
				return err
			case <-cmd.Context().Done():
				return nil
			}
		},
	}
	flags.register(cmd)
	return cmd
}

// copyUntilEscape sends what is typed until the escape key or the end of the input.
func copyUntilEscape(w io.Writer, r io.Reader) error {
	buffer := make([]byte, 256)
	for {
		n, err := r.Read(buffer)
		for i, c := range buffer[:n] {
			if c == escapeKey {
				_, err := w.Write(buffer[:i])
				return err
			}
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// runAttached runs a command with this process's input and output; its exit code becomes an error.
func runAttached(cmd *cobra.Command, argv []string) error {
	child := exec.CommandContext(cmd.Context(), argv[0], argv[1:]...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := child.Run(); err != nil {
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	return nil
}
