// Package initramfs builds the in-memory agent image: Debian's kernel, a trimmed module tree, disk tools with their
// libraries, u-root's init and the agent, as one signable UKI and as kernel plus initramfs, byte for byte reproducible.
//
// The work has three steps of very different cost. [Sysroot] fetches Debian packages (once), [BuildBase] makes the
// compressed archive that every rack shares (when the agent changes), and [Assemble] puts one rack's configuration in
// front of it (milliseconds).
package initramfs
