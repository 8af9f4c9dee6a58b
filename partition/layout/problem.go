package layout

import (
	"fmt"
	"strings"
	"unicode"
)

// Reasons of problems are stable: programs may tell problems apart by them.
const (
	ReasonSyntax        = "SYNTAX"         // not YAML or JSON, or the wrong kind of value
	ReasonUnknownField  = "UNKNOWN_FIELD"  // a field that there is not
	ReasonMissing       = "MISSING"        // something that is needed
	ReasonInvalid       = "INVALID"        // a value that cannot be
	ReasonDuplicate     = "DUPLICATE"      // two of what there may be one of
	ReasonUnsupported   = "UNSUPPORTED"    // a value that others have and Bloomery has not
	ReasonNotFound      = "NOT_FOUND"      // a device that the layout does not make
	ReasonConflict      = "CONFLICT"       // two things that exclude each other
	ReasonTooMany       = "TOO_MANY"       // more than a limit
	ReasonDiskNotFound  = "DISK_NOT_FOUND" // a disk that the machine does not have
	ReasonDiskUnfit     = "DISK_UNFIT"     // a disk that must not or cannot be used
	ReasonDoesNotFit    = "DOES_NOT_FIT"   // too little space
	ReasonCannotBoot    = "CANNOT_BOOT"    // the machine would not start from it
	ReasonStackMissing  = "STACK_MISSING"  // the image cannot start from it
	ReasonTPM2Missing   = "TPM2_MISSING"   // the machine has no TPM 2.0
	ReasonPlanCorrupted = "PLAN_INVALID"   // a plan that MakePlan would not make
)

// Problem is one thing that is wrong with a layout.
type Problem struct {
	// Path is the field's, as in "disks[0].partitions[2].size"; empty for the document as a whole.
	Path   string
	Reason string
	// Message says what is wrong and what would be right.
	Message string
	// Line of the document, from 1; 0 when it is not known.
	Line int
}

func (p Problem) Error() string {
	text := p.Message
	if p.Path != "" {
		text = p.Path + ": " + text
	}
	if p.Line > 0 {
		text += fmt.Sprintf(" (line %d)", p.Line)
	}
	return text
}

// Problems are everything that was found wrong, in the order of the document.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds what a document made to be wrong can make of an answer.
const maxProblems = 64

func (p *Problems) add(path, reason, format string, args ...any) {
	if len(*p) < maxProblems {
		*p = append(*p, Problem{Path: path, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
}

// err is p as an error, nil when there is no problem.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// at makes a path: at("disks", 0, "partitions", 2) is "disks[0].partitions[2]".
func at(parts ...any) string {
	var b strings.Builder
	for _, part := range parts {
		switch part := part.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", part)
		case string:
			if b.Len() > 0 && part != "" {
				b.WriteByte('.')
			}
			b.WriteString(part)
		}
	}
	return b.String()
}

// clip shortens what a document or a disk says of itself before it stands in a message, and takes out what a terminal would obey.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
