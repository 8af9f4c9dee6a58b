package coordinator

import (
	"errors"
	"fmt"

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
	switch {
	case err == nil || errors.As(err, &connectErr):
		return err
	case errors.As(err, &refusal):
		code := connect.CodeInvalidArgument
		if refusal.State {
			code = connect.CodeFailedPrecondition
		}
		e := connect.NewError(code, refusal)
		if detail, err := connect.NewErrorDetail(&bloomeryv1.FieldError{Field: refusal.Field, Reason: refusal.Reason, Message: refusal.Message}); err == nil {
			e.AddDetail(detail)
		}
		return e
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
