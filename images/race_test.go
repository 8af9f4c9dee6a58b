//go:build race

package images

// raceDetector says that this binary has the race detector in it, whose memory is several times that of the program.
const raceDetector = true
