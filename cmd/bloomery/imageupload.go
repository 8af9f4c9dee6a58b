package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

const (
	// uploadChunk is how much data one message carries.
	uploadChunk = 1 << 20
	// An upload that broke goes on after a pause, until for uploadPatience no coordinator has received anything more.
	uploadPatience   = 2 * time.Minute
	firstUploadPause = 500 * time.Millisecond
	maxUploadPause   = 10 * time.Second
)

// uploadImage sends an image to whichever coordinator answers. When the stream breaks it goes on from what that coordinator, or the next one
// to answer, has received.
func uploadImage(ctx context.Context, c *client, header *bloomeryv1.AddImageHeader, dataPath string, progress io.Writer) (*bloomeryv1.Image, error) {
	data, err := os.Open(dataPath)
	if err != nil {
		return nil, err
	}
	defer data.Close() // read only
	sum := sha256.Sum256(header.GetManifest())
	digest := hex.EncodeToString(sum[:])
	received, moved, pause := int64(-1), time.Now(), firstUploadPause
	for try := 0; ; try++ {
		offset, err := receivedBytes(ctx, c, digest)
		if err == nil {
			var image *bloomeryv1.Image
			if image, err = sendImage(ctx, c, header, offset, data, progress); err == nil {
				return image, nil
			}
		}
		if try > 0 && connect.CodeOf(err) == connect.CodeAlreadyExists {
			// The answer to the try before may have been lost.
			answer, askErr := ask(ctx, c.images.GetImage, &bloomeryv1.GetImageRequest{Name: header.GetName()})
			if askErr == nil && answer.GetImage().GetManifestSha256() == digest {
				return answer.GetImage(), nil
			}
		}
		if !goesOn(ctx, err) || ctx.Err() != nil {
			return nil, err
		}
		if offset != received {
			received, moved, pause = offset, time.Now(), firstUploadPause
		}
		if time.Since(moved) > uploadPatience {
			return nil, err
		}
		fmt.Fprintf(progress, "sending %s: %v; going on in a moment\n", header.GetName(), err)
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
		pause = min(2*pause, maxUploadPause)
	}
}

// goesOn says whether an upload that ended with this error can go on later from what was received.
func goesOn(ctx context.Context, err error) bool {
	return err != nil && (ctx.Err() != nil || unanswered(err) || connect.CodeOf(err) == connect.CodeAborted)
}

// receivedBytes asks how much of the data an interrupted upload has brought. A coordinator of an older version keeps none.
func receivedBytes(ctx context.Context, c *client, digest string) (int64, error) {
	answer, err := ask(ctx, c.images.GetImageUpload, &bloomeryv1.GetImageUploadRequest{ManifestSha256: digest})
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return 0, nil
	}
	return answer.GetReceivedBytes(), err
}

// sendImage sends the data from an offset on.
func sendImage(ctx context.Context, c *client, header *bloomeryv1.AddImageHeader, offset int64, data *os.File, progress io.Writer) (*bloomeryv1.Image, error) {
	info, err := data.Stat()
	if err != nil {
		return nil, err
	}
	if _, err := data.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read %s: %w", images.DataFile, err)
	}
	if offset > 0 {
		fmt.Fprintf(progress, "sending %s: going on at %s of %s\n", header.GetName(), bytesText(offset), bytesText(info.Size()))
	}
	header = proto.CloneOf(header)
	header.Offset = offset
	stream := c.images.AddImage(ctx)
	lines := throttled{w: progress, every: 2 * time.Second}
	message := &bloomeryv1.AddImageRequest{Part: &bloomeryv1.AddImageRequest_Header{Header: header}}
	for message != nil {
		// A refusal ends the stream early: its reason comes with CloseAndReceive.
		if err := stream.Send(message); err != nil {
			break
		}
		chunk := make([]byte, uploadChunk)
		n, err := io.ReadFull(data, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("read %s: %w", images.DataFile, err)
		}
		message = nil
		if n > 0 {
			message = &bloomeryv1.AddImageRequest{Part: &bloomeryv1.AddImageRequest_Data{Data: chunk[:n]}}
			offset += int64(n)
			lines.printf("sending %s: %s of %s\n", header.GetName(), bytesText(offset), bytesText(info.Size()))
		}
	}
	answer, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return answer.Msg.GetImage(), nil
}
