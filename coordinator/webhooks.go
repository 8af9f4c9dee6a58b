package coordinator

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	webhookDuty = "webhooks"
	// deliverBatch is how many events are read at a time for a webhook; saveEvery how long a mark may be older than what was delivered:
	// that much is delivered again after a crash.
	deliverBatch = 100
	saveEvery    = time.Second
	// maxDeadLetters is when a webhook stops giving up, so that its list stays one that can be read and sent again.
	maxDeadLetters = 1000
	// lookAgain is how often the list of webhooks is read when nothing says that it has changed.
	lookAgain = 5 * time.Second
	maxWhy    = 300
)

// DeliverWebhooks sends events to their receivers for as long as this coordinator has the duty to.
func (c *Coordinator) DeliverWebhooks(ctx context.Context) error {
	c.hold(ctx, webhookDuty, c.deliverAll)
	return nil
}

// deliverAll runs one delivery for each webhook, so that a slow receiver keeps no other waiting.
func (c *Coordinator) deliverAll(ctx context.Context, f store.Fence) error {
	wake, unsubscribe := c.hub.subscribe("webhooks")
	defer unsubscribe()
	sender := newSender()
	defer sender.close()
	running := map[string]context.CancelFunc{}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		webhooks, err := c.webhooks(ctx)
		if err != nil {
			return err
		}
		present := map[string]bool{}
		for _, w := range webhooks {
			// A webhook that was removed and added again is another one.
			key := w.GetName() + w.GetCreatedAt().String()
			present[key] = true
			if running[key] != nil {
				continue
			}
			one, end := context.WithCancel(ctx)
			running[key] = end
			d := &delivery{c: c, name: w.GetName(), fence: f, sender: sender}
			wg.Go(func() { d.run(one) })
		}
		for key, end := range running {
			if !present[key] {
				end()
				delete(running, key)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(lookAgain):
		}
	}
}

func (c *Coordinator) webhooks(ctx context.Context) (all []*bloomeryv1.Webhook, err error) {
	err = c.Store.View(ctx, func(r *store.Reader) error {
		all, err = r.Webhooks()
		return err
	})
	return all, err
}

// delivery sends one webhook its events in order. What it knows stands in the store; another coordinator goes on from there.
type delivery struct {
	c      *Coordinator
	name   string
	fence  store.Fence
	sender *sender
}

// run delivers until the context ends, the webhook is gone or the duty is another's.
func (d *delivery) run(ctx context.Context) {
	wake, unsubscribe := d.c.hub.subscribe("events", "webhooks")
	defer unsubscribe()
	failures := 0
	for ctx.Err() == nil {
		idle, err := d.turn(ctx)
		switch {
		case ctx.Err() != nil, errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrFenced):
			return
		case err != nil:
			failures++
			d.c.Logger.Error("deliver to a webhook", "webhook", d.name, "error", err)
			sleep(ctx, retryPause(d.c.config.Timing.Retry, failures, 0, rand.Float64()))
			continue
		}
		failures = 0
		if idle > 0 {
			select {
			case <-ctx.Done():
			case <-wake:
			case <-time.After(idle):
			}
		}
	}
}

// turn delivers what is due and says how long nothing will be.
func (d *delivery) turn(ctx context.Context) (idle time.Duration, err error) {
	var w *bloomeryv1.Webhook
	var secret []byte
	var again []*bloomeryv1.DeadLetter
	err = d.c.Store.View(ctx, func(r *store.Reader) (err error) {
		if w, err = r.Webhook(d.name); err != nil {
			return err
		}
		if secret, err = r.WebhookSecret(d.name); err != nil {
			return err
		}
		again, err = r.DeadLetters(d.name, 0, true, deliverBatch)
		return err
	})
	if err != nil {
		return 0, err
	}
	if wait := w.GetNextTryAt().AsTime().Sub(d.c.config.Now()); w.GetNextTryAt() != nil && wait > 0 {
		// Never longer than the longest pause, whatever a clock says that has jumped.
		return min(wait, sendLongest), nil
	}
	if err := d.resend(ctx, w, secret, again); err != nil {
		return 0, err
	}
	events, err := d.c.events(ctx, store.EventFilter{After: w.GetDelivered(), Limit: deliverBatch})
	if err != nil {
		return 0, err
	}
	if len(events) == 0 {
		return d.c.config.Timing.Tick, nil
	}
	return 0, d.deliver(ctx, w, secret, events)
}

// resend tries each dead letter that is in line again once.
func (d *delivery) resend(ctx context.Context, w *bloomeryv1.Webhook, secret []byte, letters []*bloomeryv1.DeadLetter) error {
	for _, letter := range letters {
		out, err := d.send(ctx, w, secret, letter.GetEvent())
		if err != nil {
			return err
		}
		err = d.save(ctx, func(ch *change) error {
			if out.err == nil {
				return ch.DeleteDeadLetter(d.name, letter.GetEvent().GetSequence())
			}
			return ch.GiveUp(d.name, letter.GetEvent(), 1, out.why())
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deliver sends events until one fails, and stores how far it came.
func (d *delivery) deliver(ctx context.Context, w *bloomeryv1.Webhook, secret []byte, events []*bloomeryv1.Event) error {
	reached, saved := w.GetDelivered(), time.Now()
	failures := int(w.GetFailures())
	for _, e := range events {
		if wants(w.GetTypePrefixes(), e.GetType()) {
			out, err := d.send(ctx, w, secret, e)
			if err != nil {
				return errors.Join(err, d.reach(context.WithoutCancel(ctx), reached, w.GetDelivered()))
			}
			if out.err != nil {
				return d.failed(ctx, w, reached, e, failures+1, out)
			}
			failures = 0
		}
		reached = e.GetSequence()
		if time.Since(saved) > saveEvery {
			if err := d.reach(ctx, reached, w.GetDelivered()); err != nil {
				return err
			}
			saved = time.Now()
		}
	}
	return d.reach(ctx, reached, w.GetDelivered())
}

// failed notes when an event is tried again, or gives it up and goes on with the next.
func (d *delivery) failed(ctx context.Context, w *bloomeryv1.Webhook, reached int64, e *bloomeryv1.Event, failures int, out outcome) error {
	why := out.why()
	full := w.GetDeadLetters() >= maxDeadLetters
	return d.save(ctx, func(ch *change) error {
		if reached > w.GetDelivered() {
			if err := ch.WebhookReached(d.name, reached); err != nil {
				return err
			}
		}
		if !out.givenUp(failures) || full {
			if full {
				why = "its list of dead letters is full, retry them or remove the webhook; " + why
			}
			return ch.WebhookFailed(d.name, failures, ch.Now().Add(retryPause(d.c.config.Timing.Retry, failures, out.after, rand.Float64())), why)
		}
		if err := ch.GiveUp(d.name, e, failures, why); err != nil {
			return err
		}
		if err := ch.WebhookReached(d.name, e.GetSequence()); err != nil {
			return err
		}
		if w.GetDeadLetters() > 0 {
			// One event a list, not one a letter: the event is delivered to webhooks too, and may become a letter itself.
			return nil
		}
		return ch.note(&bloomeryv1.Event{Type: "webhook.gave_up", Severity: bloomeryv1.Severity_SEVERITY_ERROR,
			Message: "webhook " + d.name + " could not be delivered an event, which is in its list of dead letters: " + why},
			map[string]any{"webhook": d.name, "sequence": e.GetSequence(), "tries": failures, "status": out.status})
	})
}

func (d *delivery) reach(ctx context.Context, sequence, before int64) error {
	if sequence == before {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	return d.save(ctx, func(ch *change) error { return ch.WebhookReached(d.name, sequence) })
}

// saveTimeout bounds the note of what was delivered when the coordinator stops.
const saveTimeout = 2 * time.Second

// save writes under the duty's fence: a coordinator that lost it does not move the marks.
func (d *delivery) save(ctx context.Context, f func(*change) error) error {
	return d.c.update(ctx, func(ch *change) error {
		if err := ch.Check(d.fence); err != nil {
			return err
		}
		return f(ch)
	})
}

// send makes one try; the error is only about what is ours.
func (d *delivery) send(ctx context.Context, w *bloomeryv1.Webhook, secret []byte, e *bloomeryv1.Event) (outcome, error) {
	body, err := encodeCloudEvent(d.c.rackName(), e)
	if err != nil {
		return outcome{}, err
	}
	out := d.sender.send(ctx, w.GetUrl(), secret, body, d.c.config.Now())
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	d.c.metrics.delivered(out)
	return out, nil
}
