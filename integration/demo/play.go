package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// The containers, and the host ports on which they publish their port 80.
var (
	plain = container{name: "plain", port: 8081}
	shop  = container{name: "shop", port: 8082}
	wiki  = container{name: "wiki", port: 8083}
)

// policyText is the policy of the show.
var policyText = fmt.Sprintf(`version: 1
sets:
  trusted: [198.18.0.%[1]d, "fd00:18::%[1]d"]
  office: {comment: head office, entries: [198.18.0.%[2]d, "fd00:18::%[2]d"]}
host:
  allow:
    - {ports: [22/tcp], from: any}
`, yourID, officeID)

// show is the state of a show between its steps.
type show struct {
	*stage
	out  *page
	grid grid
}

// play runs all steps. Its error says that the show could not go on, or how
// many measurements were wrong.
func play(ctx context.Context, s *stage, out *page) error {
	begun := time.Now()
	sh := &show{stage: s, out: out, grid: grid{clients: s.clients(), letIn: map[string][]string{}}}
	for _, step := range []func(context.Context) error{
		sh.dockerAlone, sh.start, sh.exposeAny, sh.exposeOffice, sh.setsAdd, sh.setsDel, sh.flush, sh.restartEngine,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	out.step("done")
	out.note("%d measurements in %.0f seconds.", out.checks, time.Since(begun).Seconds())
	if out.wrong > 0 {
		return fmt.Errorf("%d of %d measurements were not as they must be; see above", out.wrong, out.checks)
	}
	out.note("Every one was as it must be.")
	return nil
}

func (sh *show) dockerAlone(ctx context.Context) error {
	out := sh.out
	out.note("A Docker host and three neighbours in network namespaces of their own:")
	for _, c := range sh.clients() {
		out.note("  %-10s %-13s %-12s %s", c.name, c.node.V4, c.node.V6, c.note)
	}
	out.note("  %-10s %-13s %-12s dockerd and nftfw", "host", lab.HostV4, lab.HostV6)
	out.step("Docker alone")
	out.note("Starting a Docker engine.")
	version, err := sh.openEngine(ctx)
	if err != nil {
		return err
	}
	out.note("It is %s, and there is no firewall: a published port is open to everybody.", version)
	if err := sh.dockerRun(ctx, plain, ""); err != nil {
		return err
	}
	if _, err := untilOpen(ctx, sh.you.node, plain); err != nil {
		return err
	}
	sh.letIn(plain, "stranger", "office", "you")
	sh.table(ctx)
	return nil
}

func (sh *show) start(ctx context.Context) error {
	out := sh.out
	out.step("nftfw starts")
	out.note("The policy names two sets of addresses. No rule speaks of containers, so who is")
	out.note("not trusted is not let in.")
	out.command("cat", "policy.yaml")
	out.block(policyText)
	if err := sh.firewall.WritePolicy(policyText); err != nil {
		return err
	}
	out.command("nftfw", "run")
	if err := sh.firewall.Start(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, sh.firewall.Log())
	}
	sh.letIn(plain, "you")
	sh.table(ctx)
	return nil
}

func (sh *show) exposeAny(ctx context.Context) error {
	out := sh.out
	out.step("a container with the label nftfw.expose=any")
	if err := sh.dockerRun(ctx, shop, "nftfw.expose=any"); err != nil {
		return err
	}
	took, err := untilOpen(ctx, sh.stranger.node, shop)
	if err != nil {
		return err
	}
	out.measured(milliseconds(took), "after docker run returned, until the stranger was served over v4 and v6")
	sh.letIn(shop, "stranger", "office", "you")
	sh.table(ctx)
	return nil
}

func (sh *show) exposeOffice(ctx context.Context) error {
	out := sh.out
	out.step("a container with the label nftfw.expose=office")
	out.note("The stranger tries to connect every millisecond while the container starts.")
	h := hammer(sh.stranger.node, wiki)
	err := sh.dockerRun(ctx, wiki, "nftfw.expose=office")
	if err == nil {
		_, err = untilOpen(ctx, sh.office.node, wiki)
	}
	if err := sh.noneGotIn(h, err, "connections of the stranger while it started"); err != nil {
		return err
	}
	sh.letIn(wiki, "office", "you")
	sh.table(ctx)
	return sh.nftfw(ctx, "ports")
}

func (sh *show) setsAdd(ctx context.Context) error {
	sh.out.step("the stranger is let into the office")
	if err := sh.nftfw(ctx, sh.setsCommand("add", "--timeout", "1h", "--comment", "plumber")...); err != nil {
		return err
	}
	sh.letIn(wiki, "stranger", "office", "you")
	sh.table(ctx)
	return nil
}

func (sh *show) setsDel(ctx context.Context) error {
	sh.out.step("and shown out again")
	if err := sh.nftfw(ctx, sh.setsCommand("del")...); err != nil {
		return err
	}
	sh.letIn(wiki, "office", "you")
	sh.table(ctx)
	return nil
}

func (sh *show) setsCommand(verb string, flags ...string) []string {
	node := sh.stranger.node
	return append([]string{"sets", verb, "office", node.V4.String(), node.V6.String()}, flags...)
}

func (sh *show) flush(ctx context.Context) error {
	out := sh.out
	out.step("somebody flushes the ruleset")
	out.note("That takes Docker's rules away as well as nftfw's. The stranger tries every")
	out.note("millisecond to get into the moment without rules.")
	watch, err := watchTable(ctx, sh.lab.Host)
	if err != nil {
		return err
	}
	defer watch.stop()
	during := hammer(sh.stranger.node, plain, wiki)
	out.command("nft", "flush", "ruleset")
	_, err = sh.lab.Host.Run(ctx, "nft", "flush", "ruleset")
	var away time.Duration
	if err == nil {
		away, err = watch.untilBack(ctx)
	}
	tally, stopped := during.Stop()
	if err != nil || stopped != nil {
		return fmt.Errorf("flush the ruleset: %w", cmp.Or(err, stopped))
	}
	out.measured(milliseconds(away), "without nftfw's table, as nft monitor saw it")
	out.measured(fmt.Sprint(tally.Reached()), fmt.Sprintf("connections of the stranger in that time (of %d tries since before the flush)", tally.Attempts))
	after := hammer(sh.stranger.node, plain, wiki)
	err = wait(ctx, time.Second)
	if err := sh.noneGotIn(after, err, "connections of the stranger in the second after it"); err != nil {
		return err
	}
	if err := sh.culprit(ctx); err != nil {
		return err
	}
	if err := sh.dockersRules(ctx, false); err != nil {
		return err
	}
	out.note("Until Docker's rules are back, published ports are served by docker-proxy.")
	sh.table(ctx)
	return nil
}

// culprit shows what nftfw says about the flush.
func (sh *show) culprit(ctx context.Context) error {
	answer := sh.firewall.Exec(ctx, "status", "--json")
	var status struct {
		Restores int `json:"restores"`
		Restored struct {
			Process string `json:"process"`
			PID     int    `json:"pid"`
		} `json:"last_restore"`
	}
	if err := json.Unmarshal([]byte(answer.Stdout), &status); err != nil {
		return fmt.Errorf("decode status: %w: %s", err, answer)
	}
	sh.out.command("nftfw", "status")
	for line := range strings.Lines(sh.firewall.Exec(ctx, "status").Stdout) {
		if strings.HasPrefix(line, "enforced:") || strings.HasPrefix(line, "restores:") {
			sh.out.block(line)
		}
	}
	sh.out.check(status.Restores > 0, "nftfw counts no restore")
	sh.out.check(status.Restored.Process == "nft", "nftfw says that %q removed the table, and it was nft", status.Restored.Process)
	return nil
}

// dockersRules counts Docker's own chains, of which there must be some or none.
func (sh *show) dockersRules(ctx context.Context, some bool) error {
	rules, err := sh.lab.Host.Run(ctx, "nft", "list", "ruleset")
	if err != nil {
		return err
	}
	// DOCKER with iptables underneath, docker-bridges without.
	n := strings.Count(rules, "chain DOCKER") + strings.Count(rules, "table ip docker-bridges")
	sh.out.measured(fmt.Sprint(n), "chains of Docker's in the ruleset")
	sh.out.check((n > 0) == some, "there are %d chains of Docker's", n)
	return nil
}

func (sh *show) restartEngine(ctx context.Context) error {
	out := sh.out
	out.step("the engine restarts")
	out.note("It brings its own rules back, and its containers start again. The stranger tries")
	out.note("every millisecond meanwhile. (Here it is SIGTERM to dockerd, and dockerd again.)")
	h := hammer(sh.stranger.node, plain, wiki)
	begun := time.Now()
	out.command("systemctl", "restart", "docker")
	err := sh.engine.Stop(ctx)
	if err == nil {
		err = sh.engine.Start(ctx)
	}
	for _, c := range sh.grid.containers {
		if err == nil {
			_, err = untilOpen(ctx, sh.you.node, c)
		}
	}
	took := time.Since(begun)
	if err := sh.noneGotIn(h, err, "connections of the stranger to plain and wiki"); err != nil {
		return err
	}
	out.measured(milliseconds(took), "until every container answered again")
	if err := sh.dockersRules(ctx, true); err != nil {
		return err
	}
	sh.table(ctx)
	return nil
}
