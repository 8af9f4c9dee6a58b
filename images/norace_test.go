//go:build !race

package images

const raceDetector = false
