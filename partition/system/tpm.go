package system

import (
	"context"
	"fmt"
	"slices"

	"bloomery/partition/layout"
)

func bindVolumes(_ context.Context, o Options) error {
	for _, v := range o.Plan.LUKS {
		if slices.Contains(v.Unlock, layout.UnlockTPM2) {
			return fmt.Errorf("volume %s is to be opened by the TPM, which cannot be done", v.Name)
		}
	}
	return nil
}
