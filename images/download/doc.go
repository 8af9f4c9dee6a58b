// Package download fetches the images that their makers publish: over HTTP, resumed after an interruption, and taken only with the checksum
// that was asked for.
package download
