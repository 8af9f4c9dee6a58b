package coordinator

import "golang.org/x/time/rate"

// limits bounds what anyone on the provisioning network can make the coordinator do and store.
type limits struct {
	// enrol is for all enrolments of a rack: 40 machines that start together are a burst.
	enrol *rate.Limiter
	// security is for events about refusals, phoneHome for calls without a certificate at all.
	security, phoneHome *rate.Limiter
}

func newLimits() *limits {
	return &limits{enrol: rate.NewLimiter(10, 100), security: rate.NewLimiter(1, 60), phoneHome: rate.NewLimiter(10, 100)}
}
