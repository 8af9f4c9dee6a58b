//go:build !nightly

package e2e

func nightlyLayouts() []layoutCase { return nil }
