// Package imports holds the test of the rule that imports go one way:
// cmd, then agent, coordinator, netboot, initramfs and lab, then the domain packages, then internal.
package imports
