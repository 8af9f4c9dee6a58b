package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	secretBytes = 32
	maxWebhooks = 20
)

// rackName is the rack's name, which its CA carries.
func (c *Coordinator) rackName() string {
	return strings.TrimPrefix(c.Authority.Root().Subject.CommonName, "bloomery rack ")
}

// AddWebhook implements bloomery.v1.WebhookService.
func (c *Coordinator) AddWebhook(ctx context.Context, r *connect.Request[bloomeryv1.AddWebhookRequest]) (*connect.Response[bloomeryv1.AddWebhookResponse], error) {
	if err := checkWebhook(r.Msg.GetWebhook()); err != nil {
		return nil, err
	}
	secret := make([]byte, secretBytes)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("make a webhook's secret: %w", err)
	}
	who := callerOf(ctx)
	var w *bloomeryv1.Webhook
	err := c.update(ctx, func(ch *change) error {
		all, err := ch.Webhooks()
		if err != nil {
			return err
		}
		if len(all) >= maxWebhooks {
			return notNow("webhook.name", "TOO_MANY", "there are %d webhooks already: remove one first", len(all))
		}
		newest, err := ch.NewestEvent()
		if err != nil {
			return err
		}
		w = &bloomeryv1.Webhook{Name: r.Msg.GetWebhook().GetName(), Url: r.Msg.GetWebhook().GetUrl(), TypePrefixes: r.Msg.GetWebhook().GetTypePrefixes(), CreatedBy: who.Name, Delivered: newest}
		if r.Msg.After != nil {
			if after := r.Msg.GetAfter(); after < 0 || after > newest {
				return invalid("after", "OUT_OF_RANGE", "%d: want 0 to %d, the newest event's number", after, newest)
			}
			w.Delivered = r.Msg.GetAfter()
		}
		w.Lag = newest - w.GetDelivered()
		if err := ch.CreateWebhook(w, secret); err != nil {
			return err
		}
		ch.topics["webhooks"] = true
		return ch.note(&bloomeryv1.Event{Type: "webhook.added", Message: fmt.Sprintf("webhook %s was added by %s", w.GetName(), who.Name)}, map[string]any{"webhook": w.GetName()})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.AddWebhookResponse{Webhook: w, Secret: base64.StdEncoding.EncodeToString(secret)}), nil
}

// ListWebhooks implements bloomery.v1.WebhookService.
func (c *Coordinator) ListWebhooks(ctx context.Context, _ *connect.Request[bloomeryv1.ListWebhooksRequest]) (*connect.Response[bloomeryv1.ListWebhooksResponse], error) {
	all, err := c.webhooks(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.ListWebhooksResponse{Webhooks: all}), nil
}

// TestWebhook implements bloomery.v1.WebhookService. The test is an event like any other, so the receiver may get it again in its turn.
func (c *Coordinator) TestWebhook(ctx context.Context, r *connect.Request[bloomeryv1.TestWebhookRequest]) (*connect.Response[bloomeryv1.TestWebhookResponse], error) {
	var w *bloomeryv1.Webhook
	var secret []byte
	var before int64
	err := c.update(ctx, func(ch *change) (err error) {
		if w, err = ch.Webhook(clip(r.Msg.GetName())); err != nil {
			return err
		}
		if secret, err = ch.WebhookSecret(w.GetName()); err != nil {
			return err
		}
		if before, err = ch.NewestEvent(); err != nil {
			return err
		}
		return ch.note(&bloomeryv1.Event{Type: "webhook.test", Message: fmt.Sprintf("webhook %s was tested by %s", w.GetName(), callerOf(ctx).Name)}, map[string]any{"webhook": w.GetName()})
	})
	if err != nil {
		return nil, err
	}
	// The store numbered it.
	stored, err := c.events(ctx, store.EventFilter{After: before, TypePrefix: "webhook.test", Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(stored) == 0 {
		return nil, fmt.Errorf("the test's event is not stored after number %d", before)
	}
	e := stored[0]
	body, err := encodeCloudEvent(c.rackName(), e)
	if err != nil {
		return nil, err
	}
	sender := newSender()
	defer sender.close()
	begin := time.Now()
	out := sender.send(ctx, w.GetUrl(), secret, body, c.config.Now())
	response := &bloomeryv1.TestWebhookResponse{HttpStatus: int32(out.status), Seconds: time.Since(begin).Seconds()}
	if out.err != nil {
		response.Error = out.why()
	}
	return connect.NewResponse(response), nil
}

// RemoveWebhook implements bloomery.v1.WebhookService.
func (c *Coordinator) RemoveWebhook(ctx context.Context, r *connect.Request[bloomeryv1.RemoveWebhookRequest]) (*connect.Response[bloomeryv1.RemoveWebhookResponse], error) {
	name := clip(r.Msg.GetName())
	err := c.update(ctx, func(ch *change) error {
		if err := ch.DeleteWebhook(name); err != nil {
			return err
		}
		ch.topics["webhooks"] = true
		return ch.note(&bloomeryv1.Event{Type: "webhook.removed", Message: fmt.Sprintf("webhook %s was removed by %s", name, callerOf(ctx).Name)}, map[string]any{"webhook": name})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.RemoveWebhookResponse{}), nil
}

// ListDeadLetters implements bloomery.v1.WebhookService; a page token is the sequence number that the page before ended with.
func (c *Coordinator) ListDeadLetters(ctx context.Context, r *connect.Request[bloomeryv1.ListDeadLettersRequest]) (*connect.Response[bloomeryv1.ListDeadLettersResponse], error) {
	size, err := pageSize(r.Msg.GetPageSize(), defaultDeadLetters)
	if err != nil {
		return nil, err
	}
	after := int64(0)
	if token := r.Msg.GetPageToken(); token != "" {
		if after, err = strconv.ParseInt(token, 10, 64); err != nil || after < 0 {
			return nil, invalid("page_token", "PAGE_TOKEN_INVALID", "want the token of the page before")
		}
	}
	response := &bloomeryv1.ListDeadLettersResponse{}
	err = c.Store.View(ctx, func(s *store.Reader) error {
		if _, err := s.Webhook(clip(r.Msg.GetWebhook())); err != nil {
			return err
		}
		response.DeadLetters, err = s.DeadLetters(r.Msg.GetWebhook(), after, false, size+1)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(response.GetDeadLetters()) > size {
		response.DeadLetters = response.GetDeadLetters()[:size]
		response.NextPageToken = strconv.FormatInt(response.GetDeadLetters()[size-1].GetEvent().GetSequence(), 10)
	}
	return connect.NewResponse(response), nil
}

const defaultDeadLetters = 100

// RetryDeadLetters implements bloomery.v1.WebhookService.
func (c *Coordinator) RetryDeadLetters(ctx context.Context, r *connect.Request[bloomeryv1.RetryDeadLettersRequest]) (*connect.Response[bloomeryv1.RetryDeadLettersResponse], error) {
	response := &bloomeryv1.RetryDeadLettersResponse{}
	err := c.update(ctx, func(ch *change) (err error) {
		w, err := ch.Webhook(clip(r.Msg.GetWebhook()))
		if err != nil {
			return err
		}
		if response.Retried, err = ch.RetryDeadLetters(w.GetName()); err != nil {
			return err
		}
		// The operator says that the receiver is well again: nothing waits any longer.
		if err := ch.WebhookReached(w.GetName(), w.GetDelivered()); err != nil {
			return err
		}
		ch.topics["webhooks"] = true
		return ch.note(&bloomeryv1.Event{Type: "webhook.retried", Message: fmt.Sprintf("%d dead letters of webhook %s are tried again, asked for by %s", response.GetRetried(), w.GetName(), callerOf(ctx).Name)},
			map[string]any{"webhook": w.GetName(), "letters": response.GetRetried()})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}
