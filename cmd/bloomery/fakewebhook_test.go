package main

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// The fake knows the webhook infosys, whose receiver answers, and broken, whose receiver does not.

func (f *fakeCoordinator) AddWebhook(_ context.Context, r *connect.Request[bloomeryv1.AddWebhookRequest]) (*connect.Response[bloomeryv1.AddWebhookResponse], error) {
	w := r.Msg.GetWebhook()
	if !strings.HasPrefix(w.GetUrl(), "https://") {
		return nil, fieldErrors("wrong", &bloomeryv1.FieldError{Field: "webhook.url", Reason: "URL_INVALID", Message: "want https"})
	}
	w.Delivered = 4
	if r.Msg.After != nil {
		w.Delivered = r.Msg.GetAfter()
	}
	return connect.NewResponse(&bloomeryv1.AddWebhookResponse{Webhook: w, Secret: "c2VjcmV0"}), nil
}

func (f *fakeCoordinator) ListWebhooks(context.Context, *connect.Request[bloomeryv1.ListWebhooksRequest]) (*connect.Response[bloomeryv1.ListWebhooksResponse], error) {
	return connect.NewResponse(&bloomeryv1.ListWebhooksResponse{Webhooks: []*bloomeryv1.Webhook{
		{Name: "infosys", Url: "https://infosys.example.org/in", TypePrefixes: []string{"job.", "security."}, Delivered: 4, DeadLetters: 2},
	}}), nil
}

func (f *fakeCoordinator) TestWebhook(_ context.Context, r *connect.Request[bloomeryv1.TestWebhookRequest]) (*connect.Response[bloomeryv1.TestWebhookResponse], error) {
	switch r.Msg.GetName() {
	case "infosys":
		return connect.NewResponse(&bloomeryv1.TestWebhookResponse{HttpStatus: 204, Seconds: 0.012}), nil
	case "broken":
		return connect.NewResponse(&bloomeryv1.TestWebhookResponse{HttpStatus: 500, Error: "the receiver answered 500"}), nil
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("webhook "+r.Msg.GetName()+": not found"))
}

func (f *fakeCoordinator) RemoveWebhook(context.Context, *connect.Request[bloomeryv1.RemoveWebhookRequest]) (*connect.Response[bloomeryv1.RemoveWebhookResponse], error) {
	return connect.NewResponse(&bloomeryv1.RemoveWebhookResponse{}), nil
}

// ListDeadLetters has two pages, so that a client that reads only one is found out.
func (f *fakeCoordinator) ListDeadLetters(_ context.Context, r *connect.Request[bloomeryv1.ListDeadLettersRequest]) (*connect.Response[bloomeryv1.ListDeadLettersResponse], error) {
	sequence, next := int64(2), "2"
	if r.Msg.GetPageToken() == next {
		sequence, next = 3, ""
	}
	letter := &bloomeryv1.DeadLetter{Webhook: r.Msg.GetWebhook(), Event: fakeEvent(sequence), Tries: 20, Error: "the receiver answered 500", GivenUpAt: fakeEvent(sequence).GetTime()}
	return connect.NewResponse(&bloomeryv1.ListDeadLettersResponse{DeadLetters: []*bloomeryv1.DeadLetter{letter}, NextPageToken: next}), nil
}

func (f *fakeCoordinator) RetryDeadLetters(context.Context, *connect.Request[bloomeryv1.RetryDeadLettersRequest]) (*connect.Response[bloomeryv1.RetryDeadLettersResponse], error) {
	return connect.NewResponse(&bloomeryv1.RetryDeadLettersResponse{Retried: 2}), nil
}
