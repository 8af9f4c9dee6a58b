package coordinator

import (
	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/partition/layout"
)

// planInstall is what an install makes of the machine's disks, or a *Refusal; nil for a disk image, which brings its own partitions. It touches nothing.
func planInstall(_ *bloomeryv1.Machine, spec *bloomeryv1.InstallSpec, f Facts) (*layout.Plan, error) {
	image, err := findImage(spec.GetImage(), f.Images)
	if err != nil {
		return nil, err
	}
	switch {
	case image.Kind != images.KindRootfs && len(spec.GetLayout()) > 0:
		return nil, invalid("spec.layout", "NEEDS_ROOTFS", "image %s is that of a disk, with partitions of its own: want a rootfs image, or no layout", image.Name)
	case image.Kind != images.KindRootfs && len(spec.GetSecrets()) > 0:
		return nil, invalid("spec.secrets", "NOT_USED", "secrets are a layout's, and image %s takes none", image.Name)
	case image.Kind == images.KindRootfs:
		return nil, invalid("spec.image", "KIND_UNSUPPORTED", "image %s is a root file system, which this coordinator does not install: want a disk image", image.Name)
	}
	return nil, nil
}
