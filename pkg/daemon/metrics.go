package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

// Limits of the metrics' listener.
const (
	scrapeTimeout      = 10 * time.Second
	scrapesAtOnce      = 4
	metricsConnections = 64
	listenAfter        = 5 * time.Second // an address that is not there yet is tried again
	metricsShutdown    = time.Second
)

// metrics are what Prometheus is told. Most are asked for at each scrape;
// the daemon notes the rest as it happens.
type metrics struct {
	daemon   *Daemon
	registry *prometheus.Registry
	enforced prometheus.Histogram
	missed   prometheus.Counter

	mu   sync.Mutex // held for one collection
	seen map[portLabels]lastTold
}

// portLabels name a port of a container. Ports of the host that lead to it
// share its numbers.
type portLabels struct{ container, project, service, port string }

// lastTold is what was told of a port. It keeps the number from going back: it
// is the difference of two that the kernel does not give at one moment.
type lastTold struct{ told, asked uint64 }

func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		daemon: d, registry: prometheus.NewRegistry(), seen: map[portLabels]lastTold{},
		enforced: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "nftfw_event_to_enforced_seconds", Help: "Time from an event of the engine until what follows from it is in force.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nftfw_log_missed_packets_total", Help: "Refused packets that were neither logged nor shown, beyond log.rate or for want of room.",
		}),
	}
	m.registry.MustRegister(m, m.enforced, m.missed,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nftfw_"+name, help, labels, nil)
}

// What is asked for at each scrape.
var (
	descBuild        = desc("build_info", "The version of nftfw.", "version")
	descEnforced     = desc("enforced", "1 while the policy is enforced, 0 in observe mode and when it is not.")
	descObserving    = desc("observing", "1 in observe mode, which refuses nothing.")
	descRestores     = desc("restores_total", "How often the table was put right after another process changed it.")
	descLastChange   = desc("last_change_timestamp_seconds", "When the last change of the kernel's table went through.")
	descDocker       = desc("docker_connected", "1 while the engine answers.")
	descContainers   = desc("containers", "Containers that run.")
	descSetEntries   = desc("set_entries", "Entries of a named set.", "set")
	descSourceUp     = desc("source_up", "1 while a source of a set can be read.", "set", "source")
	descSourceRows   = desc("source_entries", "Entries that a source of a set last had.", "set", "source")
	descSourceGood   = desc("source_last_good_timestamp_seconds", "When a source of a set was last read well; 0 for never.", "set", "source")
	descRefused      = desc("refused_packets_total", "Packets refused, in observe mode those that would have been, by reason.", "reason")
	descPortAccepted = desc("port_accepted_total", "New connections let in to a published port.", "container", "project", "service", "port")
	descPortRefused  = desc("port_refused_total", "New connections refused at a published port, in observe mode those that would have been.", "container", "project", "service", "port")
	descLabelErrors  = desc("label_errors", "Labels of running containers that do not count, because they cannot be understood, granted or enforced.")
	descLabelError   = desc("label_error", "1 for each of them, and why.", "container", "label", "reason")
	descPolicy       = desc("policy_info", "The policy in force.", "hash", "source", "path")
	descPolicyLoaded = desc("policy_load_success", "1 while the policy file is the policy in force, 0 after one that cannot be.")
	descCounters     = desc("counters_read", "1 where the kernel's counters could be read for this scrape.")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descEnforced, descObserving, descRestores, descLastChange, descDocker, descContainers, descSetEntries,
		descSourceUp, descSourceRows, descSourceGood,
		descRefused, descPortAccepted, descPortRefused, descLabelErrors, descLabelError, descPolicy, descPolicyLoaded, descCounters,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector: it asks the loop how things stand,
// and the kernel beside it.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	var (
		status api.Status
		ports  countedPorts
	)
	err := m.daemon.do(ctx, func(context.Context) {
		status, ports = m.daemon.status(), m.daemon.core.ports(m.daemon.core.table)
	})
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descEnforced, err)
		return
	}
	s := sink{ch}
	m.standing(s, status)
	counts, ok, err := ports.read(ctx)
	s.gauge(descCounters, truth(ok))
	if err != nil {
		m.daemon.log.Warn("counters not read for metrics", "err", err)
	}
	if !ok {
		return
	}
	for why, n := range byReason(counts) {
		s.counter(descRefused, n, why)
	}
	m.ports(s, ports, counts)
}

// standing tells how things stand.
func (m *metrics) standing(s sink, status api.Status) {
	s.gauge(descBuild, 1, status.Daemon.Version)
	s.gauge(descEnforced, truth(status.Enforced))
	s.gauge(descObserving, truth(status.Mode == string(policy.Observe)))
	s.counter(descRestores, uint64(status.Restores))
	if status.LastChange != nil {
		s.gauge(descLastChange, float64(status.LastChange.UnixMilli())/1000)
	}
	s.gauge(descDocker, truth(status.Docker.Connected))
	s.gauge(descContainers, float64(status.Docker.Containers))
	for name, set := range status.Sets {
		s.gauge(descSetEntries, float64(set.Entries), name)
	}
	for _, source := range status.Sources {
		good := 0.0
		if source.LastGood != nil {
			good = float64(source.LastGood.UnixMilli()) / 1000
		}
		s.gauge(descSourceUp, truth(source.Error == ""), source.Set, source.Source)
		s.gauge(descSourceRows, float64(source.Entries), source.Set, source.Source)
		s.gauge(descSourceGood, good, source.Set, source.Source)
	}
	mistakes := 0
	told := map[[3]string]bool{} // a label may be about several ports
	for _, p := range status.Problems {
		if p.Label == "" {
			continue
		}
		mistakes++
		if at := [3]string{p.Container, p.Label, p.Message}; !told[at] {
			told[at] = true
			s.gauge(descLabelError, 1, at[:]...)
		}
	}
	s.gauge(descLabelErrors, float64(mistakes))
	s.gauge(descPolicy, 1, status.Policy.Hash, status.Policy.Source, status.Policy.Path)
	s.gauge(descPolicyLoaded, truth(status.Policy.Error == ""))
}

// ports tells the numbers of published ports, each port of a container once.
func (m *metrics) ports(s sink, ports countedPorts, counts nft.Counts) {
	type element struct {
		verdicts string
		key      ruleset.Key
	}
	type sum struct{ asked, refused uint64 }
	sums := map[portLabels]sum{}
	counted := map[element]bool{} // that several bindings share
	for i, p := range ports.Ports.Ports {
		at := portLabels{p.Container, p.Project, p.Service, fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto)}
		n := sums[at]
		for _, place := range ports.places[i] {
			if e := (element{place.Map, place.Key}); !counted[e] {
				counted[e] = true
				asked, refused := ports.place(counts, i, place)
				n.asked, n.refused = n.asked+asked, n.refused+refused
			}
		}
		sums[at] = n
	}
	seen := make(map[portLabels]lastTold, len(sums))
	for at, n := range sums {
		now := lastTold{told: n.asked - n.refused, asked: n.asked}
		if before := m.seen[at]; n.asked >= before.asked {
			now.told = max(now.told, before.told)
		}
		seen[at] = now
		s.counter(descPortAccepted, now.told, at.container, at.project, at.service, at.port)
		s.counter(descPortRefused, n.refused, at.container, at.project, at.service, at.port)
	}
	m.seen = seen
}

// sink takes numbers.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// serveMetrics answers Prometheus at the address that the policy names, and at
// another one as soon as it names another. Who reaches it is for host.allow to
// say, as with any port of the host.
func (d *Daemon) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	}))
	stop := func() {}
	defer func() { stop() }()
	var retry <-chan time.Time
	var addr string
	for {
		select {
		case <-ctx.Done():
			return nil
		case addr = <-d.listenAt:
			stop()
			stop, retry = func() {}, nil
		case <-retry:
			retry = nil
		}
		if addr == "" {
			continue
		}
		ended, err := d.startMetrics(addr, mux)
		if err != nil {
			d.log.Warn("metrics cannot be served, trying again", "listen", addr, "again", listenAfter, "err", err)
			retry = time.After(listenAfter)
			continue
		}
		d.log.Info("metrics are served", "listen", addr)
		stop = ended
	}
}

// startMetrics serves at addr until the function that it gives is called.
func (d *Daemon) startMetrics(addr string, handler http.Handler) (stop func(), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	connections := bounded{most: metricsConnections}
	server := &http.Server{
		Handler: handler, ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: maxHeader, ConnState: connections.state,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are not served any more", "listen", addr, "err", err)
		}
	})
	return func() {
		last, cancel := context.WithTimeout(context.Background(), metricsShutdown)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close()
		}
		served.Wait()
	}, nil
}
