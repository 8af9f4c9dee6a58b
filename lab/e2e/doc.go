// Package e2e holds the tests that a machine only can show: real firmware, the real agent image and a real Debian in
// the virtual rack, driven by the commands that an operator would type.
package e2e
