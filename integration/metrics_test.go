package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/nftfw/nftfw/integration/lab"
)

const (
	metricsPort    = 9469
	prometheusPort = 9090
	metricsPolicy  = `version: 1
sets: {trusted: [198.18.0.10, "fd00:18::10"], list: {sources: [{file: %q}]}}
host: {allow: [{ports: [22/tcp], from: any}]}
metrics: {listen: "%s:9469"}
`
)

// httpFrom speaks HTTP from a namespace.
func httpFrom(ns lab.Namespace) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, err
			}
			return ns.Dial(ctx, network, to, netip.Addr{})
		},
	}}
}

// get gives the body of a page, asked for from a namespace.
func get(ctx context.Context, ns lab.Namespace, page string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return nil, err
	}
	resp, err := httpFrom(ns).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", page, resp.Status, body)
	}
	return body, err
}

// The numbers are served where the policy says, and reached by those whom
// host.allow lets in.
func TestMetricsListen(t *testing.T) {
	list := t.TempDir()
	s := scene(t, fmt.Sprintf(metricsPolicy, list, "127.0.0.1"))
	inside := addrPorts(netip.MustParseAddr("127.0.0.1"), strconv.Itoa(metricsPort))
	outside := addrPorts(lab.HostV4, strconv.Itoa(metricsPort))
	page := "http://" + inside[0].To.String() + "/metrics"
	s.eventually(30*time.Second, func() error {
		body, err := get(s.ctx(), s.Host.Namespace, page)
		for _, name := range []string{
			"nftfw_enforced 1", "nftfw_docker_connected 1", `nftfw_set_entries{set="trusted"} 2`, `nftfw_refused_packets_total{reason="host"}`, "nftfw_policy_load_success 1", "go_goroutines",
			fmt.Sprintf(`nftfw_source_up{set="list",source="file:%s"} 1`, list),
			fmt.Sprintf(`nftfw_source_entries{set="list",source="file:%s"} 0`, list),
		} {
			if err == nil && !strings.Contains(string(body), name) {
				err = fmt.Errorf("no %s in\n%s", name, body)
			}
		}
		return err
	})
	s.closed(s.permitted.Namespace, outside)

	t.Log("another address is served at once, and opened to nobody by that")
	if err := s.fw.WritePolicy(fmt.Sprintf(metricsPolicy, list, "0.0.0.0")); err != nil {
		t.Fatal(err)
	}
	s.nftfw("apply")
	s.eventually(30*time.Second, func() error {
		_, err := get(s.ctx(), s.permitted.Namespace, "http://"+outside[0].To.String()+"/metrics")
		return err
	})
	s.closed(s.stranger.Namespace, outside)

	t.Log("without metrics in the policy nothing listens")
	if err := s.fw.WritePolicy("version: 1\n"); err != nil {
		t.Fatal(err)
	}
	s.nftfw("apply", "--force")
	s.eventually(30*time.Second, func() error {
		if _, err := get(s.ctx(), s.Host.Namespace, page); err == nil {
			return fmt.Errorf("%s is still served", page)
		}
		return nil
	})
}

// Debian's Prometheus scrapes the daemon, and every alert and every panel that
// we hand out finds data.
func TestAlertsAndDashboard(t *testing.T) {
	for _, program := range []string{"prometheus", "promtool"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: integration/install-deps.sh installs it", err)
		}
	}
	alerts, err := filepath.Abs("../packaging/prometheus/nftfw-alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", alerts).CombinedOutput(); err != nil {
		t.Fatalf("promtool: %v\n%s", err, out)
	}
	queries := alertQueries(t, alerts)
	queries = append(queries, panelQueries(t, "../packaging/grafana/nftfw.json")...)

	s := scene(t, fmt.Sprintf(metricsPolicy, t.TempDir(), "127.0.0.1"))
	s.run("web", "-p", "8080:80")
	p := s.prometheus(alerts)
	s.eventually(30*time.Second, func() error { return p.query(s.ctx(), "nftfw_enforced == 1") })
	// Something has to happen between two scrapes for a rate to tell of it.
	s.run("other", "-p", "8081:80")
	s.open(s.permitted.Namespace, "web", hostPorts("8080"))
	s.closed(s.stranger.Namespace, hostPorts("8080"))
	var wg sync.WaitGroup
	for _, q := range append(queries,
		query{"numbers", `sum(nftfw_port_accepted_total{container="web", port="80/tcp"}) >= 2`},
		query{"numbers", `sum(nftfw_port_refused_total{container="web", port="80/tcp"}) >= 2`},
		query{"numbers", `nftfw_refused_packets_total{reason="from"} >= 2`},
		query{"numbers", `nftfw_containers == 2`},
		query{"numbers", `nftfw_event_to_enforced_seconds_count > 0`},
		query{"rules", `count(ALERTS or vector(0))`},
	) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx(), 60*time.Second)
			defer cancel()
			if err := lab.Poll(ctx, 300*time.Millisecond, func() error { return p.query(ctx, q.expr) }); err != nil {
				t.Errorf("%s: %s: %v", q.of, q.expr, err)
			}
		})
	}
	wg.Wait()
	p.rulesAreWell(s)
}

// query is an expression, and what it is taken from.
type query struct{ of, expr string }

// comparison is how an alert's expression ends.
var comparison = regexp.MustCompile(`^(.*) (?:==|<|>) [0-9.]+$`)

// alertQueries gives what each alert compares with a number: the comparison
// itself has no data while all is well.
func alertQueries(t *testing.T, path string) []query {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var out []query
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			m := comparison.FindStringSubmatch(r.Expr)
			if m == nil {
				t.Fatalf("alert %s does not end in a comparison with a number: %s", r.Alert, r.Expr)
			}
			out = append(out, query{"alert " + r.Alert, m[1]})
		}
	}
	if len(out) == 0 {
		t.Fatal("no alerts")
	}
	return out
}

// panelQueries gives what the panels ask, with Grafana's variables filled in.
func panelQueries(t *testing.T, path string) []query {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m")
	var out []query
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			out = append(out, query{"panel " + p.Title, variables.Replace(target.Expr)})
		}
	}
	if len(out) == 0 {
		t.Fatal("no panels")
	}
	return out
}

// prometheus is Debian's, on the host.
type prometheus struct{ host lab.Namespace }

// prometheus starts one that scrapes nftfw twice a second, until the test ends.
func (s *set) prometheus(rules string) prometheus {
	s.t.Helper()
	dir := s.t.TempDir()
	config := fmt.Sprintf("global: {scrape_interval: 500ms, evaluation_interval: 500ms}\nrule_files: [%s]\nscrape_configs: [{job_name: nftfw, static_configs: [{targets: [\"127.0.0.1:%d\"]}]}]\n", rules, metricsPort)
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		s.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := s.Host.Command(context.WithoutCancel(s.ctx()), "prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", prometheusPort))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && s.t.Failed() {
			s.t.Logf("log of prometheus:\n%s", tail(string(text), 40))
		}
	})
	return prometheus{s.Host.Namespace}
}

func (p prometheus) api(ctx context.Context, path string, into any) error {
	body, err := get(ctx, p.host, fmt.Sprintf("http://127.0.0.1:%d/api/v1/%s", prometheusPort, path))
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// query demands that the expression has a value.
func (p prometheus) query(ctx context.Context, expr string) error {
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := p.api(ctx, "query?query="+url.QueryEscape(expr), &answer); err != nil {
		return err
	}
	for _, r := range answer.Data.Result {
		if r.Value[1] != "NaN" {
			return nil
		}
	}
	return fmt.Errorf("no data: %+v", answer.Data.Result)
}

// rulesAreWell demands that Prometheus could evaluate every alert, and that
// none fires on a host that is well.
func (p prometheus) rulesAreWell(s *set) {
	s.t.Helper()
	var answer struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError, State string }
			}
		}
	}
	if err := p.api(s.ctx(), "rules", &answer); err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for _, g := range answer.Data.Groups {
		for _, r := range g.Rules {
			n++
			if r.Health != "ok" || r.State != "inactive" {
				s.t.Errorf("alert %s: %+v", r.Name, r)
			}
		}
	}
	if n == 0 {
		s.t.Error("Prometheus has no alerts")
	}
}
