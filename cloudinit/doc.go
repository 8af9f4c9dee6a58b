// Package cloudinit builds and validates what cloud-init reads on an installed machine: the NoCloud seed and the user-data in it.
package cloudinit
