package coordinator

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/netboot"
)

// collector asks for what is counted elsewhere when somebody scrapes: the store, and the DHCP server.
type collector struct {
	c *Coordinator

	up, machines, jobs, events, newest, segments, archived, missing, lag, letters, packets, leader, changes *prometheus.Desc
}

func newCollector(c *Coordinator) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("bloomery_"+name, help, labels, nil)
	}
	return &collector{
		c:        c,
		up:       desc("store_up", "Whether the store answered this scrape. What is counted in the store is missing if it did not."),
		leader:   desc("database_leader", "Whether this coordinator leads the replicated database."),
		changes:  desc("database_leader_changes_total", "Changes of the database's leader that this coordinator has seen: failovers and planned ones."),
		machines: desc("machines", "Machines, by status.", "status"),
		jobs:     desc("jobs", "Jobs on record, by kind and status.", "kind", "status"),
		events:   desc("events_in_database", "Events in the database, which every coordinator has in memory."),
		newest:   desc("event_sequence", "Number of the newest event."),
		segments: desc("archive_segments", "Files of the event archive."),
		archived: desc("archive_events", "Events in the archive."),
		missing:  desc("archive_missing_segments", "Files of the event archive that this coordinator has no copy of yet."),
		lag:      desc("webhook_lag_events", "Events between a webhook's mark and the newest.", "webhook"),
		letters:  desc("webhook_dead_letters", "Deliveries of a webhook that were given up.", "webhook"),
		packets:  desc("dhcp_packets_total", "Packets at this coordinator's DHCP server, by what was done with them.", "result"),
	}
}

// Describe implements prometheus.Collector.
func (x *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{x.up, x.machines, x.jobs, x.events, x.newest, x.segments, x.archived, x.missing, x.lag, x.letters, x.packets, x.leader, x.changes} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (x *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	var s netboot.DHCPStats
	if boot := x.c.boot.Load(); boot != nil {
		s = boot.Stats()
	}
	for result, n := range map[string]uint64{"malformed": s.Malformed, "limited": s.Limited, "silent": s.Silent, "refused": s.Refused, "leased": s.Leased, "booted": s.Booted, "failed": s.Failed} {
		to <- prometheus.MustNewConstMetric(x.packets, prometheus.CounterValue, float64(n), result)
	}
	leading := int64(0)
	if x.c.Store.Leading() {
		leading = 1
	}
	gauge(x.leader, leading)
	to <- prometheus.MustNewConstMetric(x.changes, prometheus.CounterValue, float64(x.c.Store.LeaderChanges()))
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout) // a scrape has no context of its own here
	defer cancel()
	var counts store.Counts
	var webhooks []*bloomeryv1.Webhook
	err := x.c.Store.View(ctx, func(r *store.Reader) (err error) {
		if counts, err = r.Counts(x.c.config.Node); err != nil {
			return err
		}
		webhooks, err = r.Webhooks()
		return err
	})
	if err != nil {
		x.c.Logger.Warn("count what is in the store for a scrape", "error", err)
		gauge(x.up, 0)
		return
	}
	gauge(x.up, 1)
	for status, n := range counts.Machines {
		gauge(x.machines, n, statusName(status))
	}
	for job, n := range counts.Jobs {
		gauge(x.jobs, n, jobKindName(job.Kind), jobStatusName(job.Status))
	}
	gauge(x.events, counts.Events)
	gauge(x.newest, counts.Newest)
	gauge(x.segments, counts.Segments)
	gauge(x.archived, counts.Archived)
	gauge(x.missing, counts.Missing)
	for _, w := range webhooks {
		gauge(x.lag, w.GetLag(), w.GetName())
		gauge(x.letters, w.GetDeadLetters(), w.GetName())
	}
}
