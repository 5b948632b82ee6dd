package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// serviceStart is how long Swarm may take to start a service. Its first one
// waits for the routing mesh, which this kernel lacks.
const serviceStart = 60 * time.Second

// A service on no overlay network that publishes with mode=host is a container
// like any other.
func TestScenario18HostModeService(t *testing.T) {
	// With flags of its own the engine, and with it the swarm, ends with the test.
	s := scene(t, "version: 1"+trust, "--label", "test=swarm")
	s.ip(s.Host.Namespace, []string{"route add default via 198.18.0.66"}, nil)
	s.docker("swarm", "init", "--advertise-addr", lab.HostV4.String())
	publish := func(name string, port int, options ...string) {
		args := []string{
			"service", "create", "--detach", "--no-resolve-image", "--name", name, "--hostname", name,
			"--publish", fmt.Sprintf("mode=host,published=%d,target=80", port),
		}
		s.docker(append(append(args, options...), lab.Image)...)
	}
	publish("shop", 8080, "--container-label", "nftfw.expose=any")
	publish("plain", 8081)
	probes := hostPorts("8080", "8081")
	s.eventually(serviceStart, func() error {
		for _, p := range probes {
			if r := s.Host.Probe(s.ctx(), p); r.Outcome != lab.Answered {
				return fmt.Errorf("%s: %s", p, r)
			}
		}
		return nil
	})
	s.open(s.stranger.Namespace, "shop", hostPorts("8080"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8081"))
	s.closed(s.stranger.Namespace, hostPorts("8081"))
	t.Log("the swarm's own ports are not for everybody")
	s.closed(s.stranger.Namespace, hostPorts("2377", "7946"))
	s.docker("service", "rm", "shop", "plain")
	s.closes(s.Host.Namespace, probes)
	s.docker("swarm", "leave", "--force")
}
