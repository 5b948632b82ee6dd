package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/integration/lab"
)

// TestSwarmRunsNftfw has a swarm of two nodes run nftfw itself, as the stack in
// packaging/swarm does: one task on each node, and the policy a config.
func TestSwarmRunsNftfw(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l, err := lab.New(t.Context(), newLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	other, err := l.Neighbour(t.Context(), "second", 2)
	if err != nil {
		t.Fatal(err)
	}
	manager, worker := swarmNode(t, l), swarmNode(t, other)
	for _, c := range []struct {
		node **lab.Node
		name string
		id   uint8
	}{{&manager.permitted, "permitted", 10}, {&manager.stranger, "stranger", 66}} {
		if *c.node, err = l.Client(t.Context(), c.name, c.id); err != nil {
			t.Fatal(err)
		}
	}
	nodes := []*set{manager, worker}
	for i, n := range nodes {
		n.ip(n.Host.Namespace, []string{"route add default via 198.18.0.66"}, nil)
		if i == 0 {
			n.docker("swarm", "init", "--advertise-addr", lab.HostV4.String())
		} else {
			token := manager.docker("swarm", "join-token", "--quiet", "worker")
			n.docker("swarm", "join", "--token", token, lab.HostV4.String()+":2377")
		}
		n.awaitMesh()
		n.ip(n.Host.Namespace, []string{"route del default"}, nil)
		n.run(n.Host.Name, "-p", "8080:80")
	}
	probes := func(n *set) []lab.Probe { return addrPorts(n.Host.V4, "8080") }
	for _, n := range nodes {
		n.open(manager.stranger.Namespace, n.Host.Name, probes(n))
	}
	deploy := stackOf(t, nodes)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		out, err := manager.engine.Docker(context.Background(), "service", "ps", "--no-trunc", "nftfw_nftfw")
		t.Logf("service ps (err %v):\n%s", err, out)
		for _, n := range nodes {
			last, err := n.engine.Docker(context.Background(), "ps", "--all", "--quiet", "--filter", "status=exited")
			if err == nil {
				first, _, _ := strings.Cut(last, "\n")
				out, err = n.engine.DockerAll(context.Background(), "logs", first)
			}
			t.Logf("last container of %s (err %v):\n%s", n.Host.Name, err, out)
		}
	})

	t.Log("a task on each node, and the policy of the config in force")
	deploy("version: 1" + trust)
	for _, n := range nodes {
		n.eventually(swarmStart, func() error {
			if r := manager.stranger.Probe(n.ctx(), probes(n)[0]); r.Reached() {
				return fmt.Errorf("%s is open to the stranger: %s\n%s", n.Host.Name, r,
					manager.docker("service", "ps", "--no-trunc", "nftfw_nftfw"))
			}
			return nil
		})
		n.open(manager.permitted.Namespace, n.Host.Name, probes(n))
		task := n.docker("ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=nftfw_nftfw")
		if out := n.docker("exec", task, "/nftfw", "status"); !strings.Contains(out, "/etc/nftfw/policy.yaml (sha256") || !strings.Contains(out, "connected, engine") {
			t.Errorf("status on %s:\n%s", n.Host.Name, out)
		}
	}
	if t.Failed() {
		return
	}

	t.Log("a container that starts later is known to it")
	worker.run("later", "-p", "8081:80", "--label", "nftfw.expose=any")
	worker.open(manager.stranger.Namespace, "later", addrPorts(worker.Host.V4, "8081"))

	t.Log("another policy")
	deploy("version: 1\ncontainers: {default: any}\n" + trust)
	for _, n := range nodes {
		n.eventually(swarmStart, func() error {
			if r := manager.stranger.Probe(n.ctx(), probes(n)[0]); r.Outcome != lab.Answered {
				return fmt.Errorf("%s, want it open", r)
			}
			return nil
		})
	}

	t.Log("without the stack the rules stay")
	manager.docker("stack", "rm", "nftfw")
	for _, n := range nodes {
		n.eventually(swarmStart, func() error {
			if left := n.docker("ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=nftfw_nftfw"); left != "" {
				return errors.New("the task is still there")
			}
			return nil
		})
		if _, err := n.Host.Run(n.ctx(), "nft", "list", "table", "inet", "nftfw"); err != nil {
			t.Errorf("%s: %v", n.Host.Name, err)
		}
	}
}

// swarmNode is a host with an engine that has the image nftfw, and whose
// network namespaces show up in containers.
func swarmNode(t *testing.T, l *lab.Lab) *set {
	t.Helper()
	engine, err := l.Engine(lab.EngineOptions{})
	if err != nil {
		noEngine(t, err)
	}
	// On a machine with systemd /run is a shared mount already.
	netns := netnsOf(l)
	if err := os.MkdirAll(netns, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Mount(netns, netns, "", unix.MS_BIND, ""), unix.Mount("", netns, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := &set{stage: &stage{Lab: l, engine: engine}, t: t}
	image := filepath.Join(l.Dir(), "nftfw.tar")
	if out, err := exec.CommandContext(t.Context(), "sh", "../packaging/image/build.sh", built.nftfw, image).CombinedOutput(); err != nil {
		t.Fatalf("build image: %v: %s", err, out)
	}
	n.docker("import", "-c", `ENTRYPOINT ["/nftfw"]`, "-c", `CMD ["run"]`, image, "nftfw")
	if err := engine.LoadImage(t.Context(), built.echo, lab.Image); err != nil {
		t.Fatal(err)
	}
	return n
}

// netnsOf is where the engine of a lab keeps its network namespaces.
func netnsOf(l *lab.Lab) string { return filepath.Join(l.Dir(), "engine", "exec", "netns") }

// stackOf gives what deploys packaging/swarm/stack.yaml with a policy. Paths of
// the host are those of the lab: one machine is both nodes here.
func stackOf(t *testing.T, nodes []*set) func(policy string) {
	t.Helper()
	text, err := os.ReadFile("../packaging/swarm/stack.yaml")
	if err != nil {
		t.Fatal(err)
	}
	stack, volume := string(text), ""
	replaced := func(old, by string) {
		if !strings.Contains(stack, old) {
			t.Fatalf("stack.yaml does not have %q", old)
		}
		stack = strings.ReplaceAll(stack, old, by)
	}
	dir := nodes[0].Dir()
	for _, n := range nodes {
		id := n.docker("info", "--format", "{{.Swarm.NodeID}}")
		if err := os.Symlink(strings.TrimPrefix(n.engine.Host(), "unix://"), filepath.Join(dir, id+".sock")); err != nil {
			t.Fatal(err)
		}
		volume += strings.ReplaceAll(`      - type: bind
        source: NETNS
        target: NETNS
        read_only: true
        bind: {propagation: rslave}
`, "NETNS", netnsOf(n.Lab))
	}
	replaced("/var/run/docker.sock:/var/run/docker.sock", dir+"/{{.Node.ID}}.sock:/var/run/docker.sock")
	replaced(strings.ReplaceAll(`      - type: bind
        source: NETNS
        target: NETNS
        read_only: true
        bind: {propagation: rslave}
`, "NETNS", "/var/run/docker/netns"), volume)
	deployed := 0
	before := stack
	return func(policy string) {
		t.Helper()
		deployed++
		stack = before
		replaced("${POLICY:?set it as the head of this file says}", fmt.Sprint(deployed))
		for name, text := range map[string]string{"policy.yaml": policy, "stack.yaml": stack} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		nodes[0].docker("stack", "deploy", "--resolve-image", "never", "-c", filepath.Join(dir, "stack.yaml"), "nftfw")
	}
}
