package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

func newImageKeyCommand(set *settings) *cobra.Command {
	return group("key", "Say by which keys images may be signed", newImageKeyList(set), newImageKeyAdd(set), newImageKeyRevoke(set))
}

func newImageKeyList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the keys that images may be signed by, and those that were revoked",
		Example: `  bloomery image key list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.images.ListImageKeys, &bloomeryv1.ListImageKeysRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "ID", "ADDED", "ADDED BY", "REVOKED", "REVOKED BY")
				for _, k := range answer.GetKeys() {
					row(w, k.GetId(), day(k.GetAddedAt()), k.GetAddedBy(), day(k.GetRevokedAt()), k.GetRevokedBy())
				}
			})
		},
	}
}

func newImageKeyAdd(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:   "add FILE",
		Short: "Trust images that another key signs",
		Long: `Add makes all coordinators and agents accept images that the key in FILE, a minisign public key, has signed. Add
the next key before you revoke the one in use.`,
		Example: `  minisign -G -W -p image-2027.pub -s image-2027.key
  bloomery image key add image-2027.pub`,
	}, func(ctx context.Context, c *client, path string) (*bloomeryv1.AddImageKeyResponse, error) {
		key, err := images.LoadPublicKey(path)
		if err != nil {
			return nil, err
		}
		return ask(ctx, c.images.AddImageKey, &bloomeryv1.AddImageKeyRequest{PublicKey: key.String()})
	}, func(w io.Writer, answer *bloomeryv1.AddImageKeyResponse) error {
		return set.printMessage(w, answer.GetKey(), func(w io.Writer) { fmt.Fprintf(w, "images may be signed by key %s\n", answer.GetKey().GetId()) })
	})
}

func newImageKeyRevoke(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:   "revoke ID",
		Short: "End the trust in a key at once, on all coordinators",
		Long: `Revoke makes every image that the key has signed useless: it is neither served nor copied nor installed, and a job
that has yet to write one fails. Its data stays until the image is removed, or signed by another key ("image sign") and
added again. A revoked key cannot be added again, and the last trusted one cannot be revoked.`,
		Example: `  bloomery image key revoke 8A6D2A3C5BD4E1F0`,
	}, func(ctx context.Context, c *client, id string) (*bloomeryv1.RevokeImageKeyResponse, error) {
		return ask(ctx, c.images.RevokeImageKey, &bloomeryv1.RevokeImageKeyRequest{Id: id})
	}, func(w io.Writer, answer *bloomeryv1.RevokeImageKeyResponse) error {
		return set.printMessage(w, answer.GetKey(), func(w io.Writer) { fmt.Fprintf(w, "key %s was revoked\n", answer.GetKey().GetId()) })
	})
}
