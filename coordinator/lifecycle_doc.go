package coordinator

import (
	"fmt"
	"strings"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// statusName is a status as people write it: "available".
func statusName(s bloomeryv1.MachineStatus) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "MACHINE_STATUS_"))
}

// LifecyclePage renders docs/lifecycle.md from the table of transitions.
func LifecyclePage() string {
	var b strings.Builder
	b.WriteString("# The lifecycle of a machine\n\n")
	b.WriteString("Generated from the table in `coordinator/lifecycle.go` by `go test ./coordinator -run TestLifecyclePage -update`.\n")
	b.WriteString("A lock is orthogonal: a locked machine takes no job. `rescue` and `retired` have no transitions yet.\n\n")
	b.WriteString("```mermaid\nstateDiagram-v2\n    [*] --> discovered\n")
	for _, t := range Transitions() {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", statusName(t.From), statusName(t.To), t.Event)
	}
	b.WriteString("```\n\n| from | event | to | meaning |\n| --- | --- | --- | --- |\n")
	for _, t := range Transitions() {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", statusName(t.From), t.Event, statusName(t.To), t.Why)
	}
	return b.String()
}
