// Package apply carries a layout's plan out on a machine's disks: it stops what is there, makes what the plan says, reads it back, and mounts it.
// It never touches a disk that is not in the plan, and finds each by serial or WWN right before it destroys something on it.
package apply
