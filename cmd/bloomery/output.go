package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// printMessage writes a message as JSON or YAML with the proto file's field names, or calls table.
func (s *settings) printMessage(w io.Writer, message proto.Message, table func(w io.Writer)) error {
	switch s.output {
	case "json":
		text, err := messageJSON(message)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, string(text))
		return err
	case "yaml":
		text, err := messageJSON(message)
		if err != nil {
			return err
		}
		return jsonToYAML(w, text)
	}
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	table(tab)
	return tab.Flush()
}

// printValue is printMessage for values that are not protobuf messages.
func (s *settings) printValue(w io.Writer, value any, table func(w io.Writer)) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	switch s.output {
	case "json":
		_, err = fmt.Fprintln(w, string(text))
		return err
	case "yaml":
		return jsonToYAML(w, text)
	}
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	table(tab)
	return tab.Flush()
}

func messageJSON(message proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return nil, err
	}
	// protojson's spacing differs from run to run on purpose; scripts and people want one form.
	var value json.RawMessage = text
	return json.MarshalIndent(value, "", "  ")
}

func jsonToYAML(w io.Writer, text []byte) error {
	var node any
	if err := yaml.Unmarshal(text, &node); err != nil {
		return err
	}
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(node); err != nil {
		return err
	}
	return encoder.Close()
}

// formatsKey is the annotation of a command that takes other formats than the usual ones.
const formatsKey = "formats"

// rowFormats is the annotation of commands that list rows.
func rowFormats() map[string]string {
	return map[string]string{formatsKey: "table wide json yaml csv"}
}

// checkFormat refuses a format that a command does not have. A command without tables prints its own first format when none is asked for.
func checkFormat(cmd *cobra.Command, output string) error {
	formats := []string{"table", "json", "yaml"}
	if own, ok := cmd.Annotations[formatsKey]; ok {
		formats = strings.Fields(own)
	}
	if !cmd.Flags().Changed("output") {
		return nil
	}
	if slices.Contains(formats, output) {
		return nil
	}
	if len(formats) == 1 {
		return usagef("--output %q: %q prints %s only", output, cmd.CommandPath(), formats[0])
	}
	last := len(formats) - 1
	return usagef("--output %q: %q takes %s or %s", output, cmd.CommandPath(), strings.Join(formats[:last], ", "), formats[last])
}

// row writes tab-separated cells; empty ones as a dash.
func row(w io.Writer, cells ...string) {
	for i, cell := range cells {
		if cells[i] = plain(cell); cells[i] == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// enumWord turns MACHINE_STATUS_RUNNING into running.
func enumWord(prefix string, value fmt.Stringer) string {
	word := strings.TrimPrefix(value.String(), prefix)
	return strings.ReplaceAll(strings.ToLower(word), "_", "-")
}

func age(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().IsZero() {
		return ""
	}
	return time.Since(t.AsTime()).Round(time.Second).String()
}

// bytesText writes a size with the binary unit that keeps it short.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, exponent := float64(n)/unit, 0
	for value >= unit && exponent < 4 {
		value /= unit
		exponent++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[exponent])
}
