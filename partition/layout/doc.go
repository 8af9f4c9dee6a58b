// Package layout says how a machine's disks shall look: it reads a layout (the desired state), matches it with the disks that are there and makes
// the plan of what is destroyed and created. Nothing here touches a disk.
package layout
