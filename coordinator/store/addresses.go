package store

import (
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
)

// Lease returns the provisioning address of a MAC; the zero address when it has none.
func (r *Reader) Lease(mac string) (netip.Addr, error) {
	var text string
	err := r.q.QueryRowContext(r.ctx, "SELECT address FROM leases WHERE mac = ?", mac).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return netip.Addr{}, nil
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the lease of %s: %w", mac, err)
	}
	return netip.ParseAddr(text)
}

// LeaseHolder names the machine that a provisioning address is leased to; ErrNotFound when none is.
func (r *Reader) LeaseHolder(address netip.Addr) (string, error) {
	var machine string
	err := r.q.QueryRowContext(r.ctx, "SELECT machine FROM leases WHERE address = ?", address.String()).Scan(&machine)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("lease of %s: %w", address, ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("read the lease of %s: %w", address, err)
	}
	return machine, nil
}

// AllocateLease gives a MAC the lowest free address of a range for good, or returns the one that it has inside the range.
func (t *Tx) AllocateLease(mac, machine string, first, last netip.Addr) (netip.Addr, error) {
	have, err := t.Lease(mac)
	if err != nil {
		return netip.Addr{}, err
	}
	if have.IsValid() && have.Compare(first) >= 0 && have.Compare(last) <= 0 {
		return have, nil
	}
	if err := t.exec("DELETE FROM leases WHERE mac = ?", mac); err != nil {
		return netip.Addr{}, fmt.Errorf("drop the lease of %s: %w", mac, err)
	}
	taken, err := t.taken("SELECT address FROM leases")
	if err != nil {
		return netip.Addr{}, err
	}
	free, err := lowestFree(first, last, taken)
	if err != nil {
		return netip.Addr{}, err
	}
	return free, t.exec("INSERT INTO leases (mac, machine, address, created) VALUES (?, ?, ?, ?)", mac, machine, free.String(), nanos(t.now))
}

// AllocateAddress gives a machine the lowest free address of a customer's network, or returns the one that it has there.
func (t *Tx) AllocateAddress(network, machine string, first, last netip.Addr) (netip.Addr, error) {
	mine, err := t.taken("SELECT address FROM addresses WHERE network = ? AND machine = ?", network, machine)
	if err != nil {
		return netip.Addr{}, err
	}
	for a := range mine {
		if a.Compare(first) >= 0 && a.Compare(last) <= 0 {
			return a, nil
		}
	}
	taken, err := t.taken("SELECT address FROM addresses WHERE network = ?", network)
	if err != nil {
		return netip.Addr{}, err
	}
	free, err := lowestFree(first, last, taken)
	if err != nil {
		return netip.Addr{}, err
	}
	return free, t.exec("INSERT INTO addresses (network, address, machine, created) VALUES (?, ?, ?, ?)", network, free.String(), machine, nanos(t.now))
}

// ReleaseAddresses frees a machine's addresses on customers' networks.
func (t *Tx) ReleaseAddresses(machine string) error {
	return t.exec("DELETE FROM addresses WHERE machine = ?", machine)
}

func (r *Reader) taken(query string, args ...any) (map[netip.Addr]bool, error) {
	rows, err := r.q.QueryContext(r.ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	all, err := collect(rows, func(rows *sql.Rows) (netip.Addr, error) {
		var text string
		if err := rows.Scan(&text); err != nil {
			return netip.Addr{}, err
		}
		return netip.ParseAddr(text)
	})
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	set := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		set[a] = true
	}
	return set, nil
}

func lowestFree(first, last netip.Addr, taken map[netip.Addr]bool) (netip.Addr, error) {
	for a := first; a.IsValid() && a.Compare(last) <= 0; a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("range %s-%s: %w", first, last, ErrExhausted)
}
