// Package netboot answers machines that boot from the network: DHCPv4 with
// UEFI HTTP boot and PXE, TFTP, and HTTP. Who gets what is one pure function,
// [Decide]; the servers only carry out its answers.
package netboot
