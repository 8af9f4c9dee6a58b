package coordinator

import (
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// Refusal is a request that cannot be done: which field, a stable reason, and what would be right.
type Refusal struct {
	Field, Reason, Message string
	// State says that the request would be right at another time (FAILED_PRECONDITION), else it never is (INVALID_ARGUMENT).
	State bool
}

func (r *Refusal) Error() string { return r.Field + ": " + r.Message }

// Refusals are all that stands against one request, in the order of its fields; at least one.
type Refusals []*Refusal

func (r Refusals) Error() string {
	lines := make([]string, len(r))
	for i, one := range r {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

func invalid(field, reason, format string, args ...any) *Refusal {
	return &Refusal{Field: field, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func notNow(field, reason, format string, args ...any) *Refusal {
	return &Refusal{Field: field, Reason: reason, Message: fmt.Sprintf(format, args...), State: true}
}

// rpcError gives an error the code and the detail that clients read.
func rpcError(err error) error {
	var connectErr *connect.Error
	var refusal *Refusal
	var refusals Refusals
	switch {
	case err == nil || errors.As(err, &connectErr):
		return err
	case errors.As(err, &refusals) && len(refusals) > 0:
		return refusalError(refusals...)
	case errors.As(err, &refusal):
		return refusalError(refusal)
	case errors.Is(err, store.ErrUnsure):
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the rack's coordinators have no majority; whether the change was made is not known: look again when they have one (%w)", err))
	case errors.Is(err, store.ErrNoMajority):
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the rack's coordinators have no majority: nothing was changed, and nothing can be read (%w)", err))
	case errors.Is(err, store.ErrDiskFull):
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("nothing was changed: %w", err))
	case errors.Is(err, store.ErrNotFound):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, store.ErrExists):
		return connect.NewError(connect.CodeAlreadyExists, err)
	case errors.Is(err, store.ErrExhausted):
		return connect.NewError(connect.CodeResourceExhausted, err)
	}
	return connect.NewError(connect.CodeInternal, err)
}

// refusalError has the code of the first refusal, and a detail for each.
func refusalError(all ...*Refusal) error {
	code := connect.CodeInvalidArgument
	if all[0].State {
		code = connect.CodeFailedPrecondition
	}
	e := connect.NewError(code, Refusals(all))
	for _, r := range all {
		if detail, err := connect.NewErrorDetail(&bloomeryv1.FieldError{Field: r.Field, Reason: r.Reason, Message: r.Message}); err == nil {
			e.AddDetail(detail)
		}
	}
	return e
}
