package cloudinit

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// ValidateHostname tells whether name is a host name or fully qualified name by RFC 1123 section 2.1: labels of 1..63 letters, digits and
// hyphens, none at a label's ends, at most 253 characters together. (Linux keeps at most 64 characters of a host name: the first label fits.)
func ValidateHostname(name string) error {
	if name == "" {
		return errors.New("hostname is empty")
	}
	if len(name) > 253 {
		return fmt.Errorf("hostname has %d characters, at most 253 are allowed", len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("hostname %q: label %q must have 1 to 63 characters", clip(name), clip(label))
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("hostname %q: label %q must not begin or end with a hyphen", clip(name), label)
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
				return fmt.Errorf("hostname %q: character %q is not a letter, digit or hyphen", clip(name), c)
			}
		}
	}
	return nil
}

// ValidateSSHKey tells whether key is one line of an OpenSSH authorized_keys file (sshd(8), AUTHORIZED_KEYS FILE FORMAT) that today's sshd takes.
func ValidateSSHKey(key string) error {
	if len(key) > 16<<10 {
		return fmt.Errorf("SSH key has %d bytes, at most 16384 are allowed", len(key))
	}
	if strings.Contains(key, "PRIVATE KEY") {
		return errors.New("SSH key is a private key: give the public one (the .pub file) and treat the private one as published")
	}
	if strings.ContainsAny(strings.TrimRight(key, "\r\n"), "\r\n\x00") {
		return errors.New("SSH key has more than one line")
	}
	public, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(key))
	if err != nil {
		return fmt.Errorf("SSH key %q is not an OpenSSH public key such as \"ssh-ed25519 AAAA… comment\"", clip(key))
	}
	if len(rest) > 0 {
		return errors.New("SSH key has more than one line")
	}
	if kind := public.Type(); kind == "ssh-dss" {
		return fmt.Errorf("SSH key is of type %s, which sshd refuses: use ssh-ed25519", kind)
	}
	return nil
}
