// Package wipe removes what a disk holds, by the strongest means that the disk has, and does not believe it: a pattern is written before and
// looked for after, and every place where metadata may lie is read back. docs/wipe.md says which means there are and what they are worth.
// Callers resolve a disk by serial or WWN right before they hand it in.
package wipe
