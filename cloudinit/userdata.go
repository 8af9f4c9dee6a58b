package cloudinit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxUserData is the largest user-data accepted, in bytes.
const MaxUserData = 64 << 10

const (
	headerCloudConfig = "#cloud-config"
	headerJinja       = "## template: jinja"
	maxMIMEParts      = 64
	maxMIMEDepth      = 4
)

// UserDataError says what is wrong with user-data and where.
type UserDataError struct {
	// Line counts from 1; 0 when the fault is not in one line. Within a MIME part it counts in that part's decoded text.
	Line int
	// Part is the path of the MIME part, for example "2" or "1.3"; empty outside of MIME.
	Part string
	// Problem says what is wrong and what would be right.
	Problem string
}

// Error is the part, the line and the problem.
func (e *UserDataError) Error() string {
	var where []string
	if e.Part != "" {
		where = append(where, "part "+e.Part)
	}
	if e.Line > 0 {
		where = append(where, fmt.Sprintf("line %d", e.Line))
	}
	if len(where) == 0 {
		return "user-data: " + e.Problem
	}
	return "user-data: " + strings.Join(where, ", ") + ": " + e.Problem
}

// ValidateUserData tells whether cloud-init will make sense of b: empty, #cloud-config with a YAML mapping, a #! script, a MIME multipart
// message of these, or one of the first two behind cloud-init's jinja header (whose YAML can be judged only after rendering).
// The error is a *UserDataError.
func ValidateUserData(b []byte) error {
	if len(b) > MaxUserData {
		return &UserDataError{Problem: fmt.Sprintf("has %d bytes, at most %d are accepted", len(b), MaxUserData)}
	}
	if len(b) == 0 {
		return nil
	}
	if line, ok := firstInvalidLine(b); !ok {
		return &UserDataError{Line: line, Problem: "is not UTF-8 text (compressed user-data is not accepted)"}
	}
	if looksLikeMIME(b) {
		parts := 0
		return validateMIME(b, "", 0, &parts)
	}
	return validateText(b, "")
}

func firstInvalidLine(b []byte) (int, bool) {
	for n, line := range bytes.Split(b, []byte{'\n'}) {
		if !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0 {
			return n + 1, false
		}
	}
	return 0, true
}

func looksLikeMIME(b []byte) bool {
	head := strings.ToLower(string(b[:min(len(b), 64)]))
	return strings.HasPrefix(head, "content-type:") || strings.HasPrefix(head, "mime-version:")
}

// validateText judges one piece of user-data by its first line, as cloud-init does.
func validateText(b []byte, part string) error {
	first, rest, _ := strings.Cut(string(b), "\n")
	first = strings.TrimRight(first, " \t\r")
	if strings.EqualFold(first, headerJinja) {
		second, _, _ := strings.Cut(rest, "\n")
		second = strings.TrimRight(second, " \t\r")
		if second != headerCloudConfig && !strings.HasPrefix(second, "#!") {
			return &UserDataError{Line: 2, Part: part, Problem: fmt.Sprintf("is %q, want #cloud-config or #! after the jinja header", clip(second))}
		}
		return nil
	}
	switch {
	case first == headerCloudConfig:
		return validateCloudConfig(b, part)
	case strings.HasPrefix(first, "#!"):
		if strings.TrimSpace(first[2:]) == "" {
			return &UserDataError{Line: 1, Part: part, Problem: "#! names no interpreter, want for example #!/bin/sh"}
		}
		return nil
	case strings.EqualFold(strings.TrimSpace(first), headerCloudConfig):
		return &UserDataError{Line: 1, Part: part, Problem: fmt.Sprintf("is %q, want exactly #cloud-config", clip(first))}
	}
	return &UserDataError{Line: 1, Part: part, Problem: fmt.Sprintf("is %q, want #cloud-config, #! and an interpreter, %s, or a MIME multipart header", clip(first), headerJinja)}
}

func validateCloudConfig(b []byte, part string) error {
	decoder := yaml.NewDecoder(bytes.NewReader(b))
	var document yaml.Node
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		line, problem := yamlProblem(b, err)
		return &UserDataError{Line: line, Part: part, Problem: "is not valid YAML: " + problem}
	}
	if document.Kind != yaml.DocumentNode || len(document.Content) != 1 {
		return &UserDataError{Part: part, Problem: "holds no YAML document after #cloud-config"}
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return &UserDataError{Line: root.Line, Part: part, Problem: fmt.Sprintf("#cloud-config must hold a YAML mapping (key: value), found a %s", kindName(root.Kind))}
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if key := root.Content[i]; key.Kind != yaml.ScalarNode {
			return &UserDataError{Line: key.Line, Part: part, Problem: "key of the top mapping must be a word"}
		}
	}
	var second yaml.Node
	if err := decoder.Decode(&second); err == nil {
		return &UserDataError{Line: second.Line, Part: part, Problem: "a second YAML document begins (---); cloud-init reads only one"}
	} else if !errors.Is(err, io.EOF) {
		line, problem := yamlProblem(b, err)
		return &UserDataError{Line: line, Part: part, Problem: "is not valid YAML: " + problem}
	}
	return nil
}

func kindName(k yaml.Kind) string {
	switch k {
	case yaml.SequenceNode:
		return "list"
	case yaml.ScalarNode:
		return "single value"
	case yaml.AliasNode:
		return "alias"
	}
	return "something else"
}

// yamlProblem finds the line at which the library gave up on b. The library names the line where the enclosing block began (and has no typed
// error): the first prefix of lines that fails in the same words ends with the line that people must look at.
func yamlProblem(b []byte, err error) (int, string) {
	problem := yamlWords(err)
	var ends []int
	for i, c := range b {
		if c == '\n' || i == len(b)-1 {
			ends = append(ends, i+1)
		}
	}
	line := 1 + sort.Search(len(ends), func(n int) bool {
		prefixErr := decodeAll(b[:ends[n]])
		return prefixErr != nil && yamlWords(prefixErr) == problem
	})
	return min(line, len(ends)), problem
}

func yamlWords(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if _, words, ok := strings.Cut(rest, ": "); ok {
			return words
		}
	}
	return text
}

func decodeAll(b []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var document yaml.Node
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// validateMIME walks a multipart message (RFC 2046 section 5.1) and judges every part that cloud-init would act on.
func validateMIME(b []byte, path string, depth int, parts *int) error {
	message, err := mail.ReadMessage(bytes.NewReader(b))
	if err != nil {
		return &UserDataError{Line: 1, Part: path, Problem: fmt.Sprintf("is not a MIME message: %v", err)}
	}
	return validateEntity(message.Header.Get("Content-Type"), message.Header.Get("Content-Transfer-Encoding"), message.Body, path, depth, parts)
}

func validateEntity(contentType, encoding string, body io.Reader, path string, depth int, parts *int) error {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return &UserDataError{Part: path, Problem: fmt.Sprintf("Content-Type %q: %v", clip(contentType), err)}
	}
	if strings.HasPrefix(media, "multipart/") {
		if depth >= maxMIMEDepth {
			return &UserDataError{Part: path, Problem: fmt.Sprintf("multiparts are nested deeper than %d", maxMIMEDepth)}
		}
		return validateMultipart(params["boundary"], body, path, depth, parts)
	}
	if path == "" {
		return &UserDataError{Line: 1, Problem: fmt.Sprintf("Content-Type is %s, want multipart/mixed", media)}
	}
	text, err := io.ReadAll(decodeTransfer(encoding, body))
	if err != nil {
		return &UserDataError{Part: path, Problem: fmt.Sprintf("cannot be decoded (Content-Transfer-Encoding %q): %v", clip(encoding), err)}
	}
	switch media {
	case "text/cloud-config", "text/x-shellscript", "text/jinja2", "text/plain":
	default:
		// Part handlers, boothooks and the like: cloud-init's own business.
		return nil
	}
	if line, ok := firstInvalidLine(text); !ok {
		return &UserDataError{Line: line, Part: path, Problem: "is not UTF-8 text"}
	}
	switch media {
	case "text/cloud-config":
		// In a part of this type the header line is optional.
		return validateCloudConfig(text, path)
	case "text/x-shellscript":
		if !bytes.HasPrefix(text, []byte("#!")) {
			return &UserDataError{Line: 1, Part: path, Problem: "is a text/x-shellscript without #! in its first line"}
		}
		return nil
	}
	return validateText(text, path)
}

func validateMultipart(boundary string, body io.Reader, path string, depth int, parts *int) error {
	if boundary == "" {
		return &UserDataError{Part: path, Problem: "multipart Content-Type has no boundary"}
	}
	reader := multipart.NewReader(body, boundary)
	for n := 1; ; n++ {
		part, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			if n == 1 {
				return &UserDataError{Part: path, Problem: "multipart holds no part"}
			}
			return nil
		}
		if err != nil {
			return &UserDataError{Part: path, Problem: fmt.Sprintf("multipart breaks off: %v", err)}
		}
		if *parts++; *parts > maxMIMEParts {
			return &UserDataError{Part: path, Problem: fmt.Sprintf("has more than %d parts", maxMIMEParts)}
		}
		contentType := part.Header.Get("Content-Type")
		if contentType == "" {
			contentType = "text/plain"
		}
		child := strconv.Itoa(n)
		if path != "" {
			child = path + "." + child
		}
		if err := validateEntity(contentType, part.Header.Get("Content-Transfer-Encoding"), part, child, depth+1, parts); err != nil {
			return err
		}
	}
}

func decodeTransfer(encoding string, body io.Reader) io.Reader {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		return base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		return quotedprintable.NewReader(body)
	}
	return body
}

// clip keeps an error readable when the first line is a megabyte of something else.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
