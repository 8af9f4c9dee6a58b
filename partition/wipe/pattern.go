package wipe

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
)

// fill puts into p what the pattern has at off: noise from the seed, so that neither compression nor deduplication in a drive can spare itself
// the writing, and any piece can be made again for the reading back. Both count in whole blocks.
func fill(p []byte, seed [32]byte, off int64) {
	var key [40]byte
	copy(key[:], seed[:])
	for i := 0; i < len(p); {
		chunk, within := (off+int64(i))/mebibyte, (off+int64(i))%mebibyte
		binary.LittleEndian.PutUint64(key[32:], uint64(chunk))
		n := min(len(p)-i, int(mebibyte-within))
		noise := rand.NewChaCha8(sha256.Sum256(key[:]))
		// ChaCha8 cannot be entered in its middle: what comes before is made and dropped.
		var dropped [block]byte
		for range within / block {
			read(noise, dropped[:])
		}
		read(noise, p[i:i+n])
		i += n
	}
}

// read is a ChaCha8's Read, which never fails.
func read(noise *rand.ChaCha8, p []byte) { _, _ = noise.Read(p) }
