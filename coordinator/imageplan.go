package coordinator

import (
	"time"

	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
)

// scrubEvery is how often a coordinator reads its copies in full, so that rot is found while others still have the image.
const scrubEvery = 24 * time.Hour

// imagePlan is what a coordinator has to do for its store to hold what the rack's catalogue says.
type imagePlan struct {
	// adopt are images that the rack does not know: they were here before it kept a catalogue, or a crash came before the record.
	adopt []*images.Entry
	// remove are names of images that the rack no longer has.
	remove []string
	// forget are names of images that are on record as here and are not.
	forget []string
	// verify are images that are here and of which that is not on record, or was found out long ago.
	verify []store.CatalogueImage
	// label are images that were added before it was on record by which key they are signed; now it is known.
	label []*bloomeryv1.Image
	// fetch are images that are not here, or are here as another version.
	fetch []store.CatalogueImage
}

// planImages compares the catalogue, what is on record of this coordinator's copies, and what is here and can be used. What a revoked key has signed
// is neither fetched nor verified: it stays where it is until somebody removes it. planImages touches nothing.
func planImages(catalogue []store.CatalogueImage, copies []store.ImageCopy, here []*images.Entry, revoked map[string]bool, now time.Time) imagePlan {
	var plan imagePlan
	known := map[string]bool{}
	local := map[string]*images.Entry{}
	for _, e := range here {
		local[e.Manifest.Name] = e
	}
	verified := map[string]time.Time{}
	for _, c := range copies {
		verified[c.Name] = c.Verified
	}
	for _, image := range catalogue {
		name := image.GetName()
		known[name] = true
		entry, isHere := local[name]
		at, onRecord := verified[name]
		if isHere && image.GetKeyId() == "" && len(entry.Signature) > 0 && entry.Manifest.SHA256().String() == image.GetManifestSha256() {
			labelled := proto.CloneOf(image.Image)
			labelled.KeyId = images.SignedBy(entry.Signature)
			plan.label = append(plan.label, labelled)
		}
		switch {
		case !image.Removed.IsZero():
			if isHere {
				plan.remove = append(plan.remove, name)
			}
		case revoked[image.GetKeyId()]:
			if onRecord {
				plan.forget = append(plan.forget, name)
			}
		case !isHere || entry.Manifest.SHA256().String() != image.GetManifestSha256():
			if onRecord {
				plan.forget = append(plan.forget, name)
			}
			plan.fetch = append(plan.fetch, image)
		case !onRecord || now.Sub(at) > scrubEvery:
			plan.verify = append(plan.verify, image)
		}
	}
	for _, e := range here {
		if !known[e.Manifest.Name] {
			plan.adopt = append(plan.adopt, e)
		}
	}
	return plan
}
