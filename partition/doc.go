// Package partition opens disks, grows the last partition of an image that was written to a larger disk, and mounts its filesystems.
// Callers resolve a disk by serial or WWN right before they hand its device path in.
package partition
