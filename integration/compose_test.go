package integration

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/nftfw/nftfw/integration/lab"
)

// composeFile has one service on compose's own network, one on a network with a
// bridge of its name and one on an internal network as well. The address pool that
// it names is none of those from which the engine takes the others'.
const composeFile = `
version: "2.4"
services:
  web:
    image: echo:1
    command: [tcp:80, tcp:81]
    ports: ["8080:80", "8081:81"]
    networks: [default, back]
    labels: {nftfw.expose.80/tcp: any}
  api:
    image: echo:1
    command: [tcp:80]
    ports: ["8082:80"]
    networks: [front]
  db:
    image: echo:1
    command: [tcp:5432]
    networks: [back]
networks:
  front:
    driver_opts: {com.docker.network.bridge.name: dkfront}
    enable_ipv6: true
    ipam: {config: [{subnet: 172.16.5.0/24}, {subnet: "fd00:d0c:c5::/64"}]}
  back: {internal: true}
`

// Networks that compose makes with its containers are followed like any other:
// closed from their first moment, opened by label or rule, gone with the project.
func TestCompose(t *testing.T) {
	s := scene(t, `version: 1
sets:
  trusted: [198.18.0.10, "fd00:18::10"]
  office: [198.18.0.66, "fd00:18::66"]
containers:
  rules: [{match: {project: shop, service: api}, expose: {80/tcp: office}}]
`)
	compose := func(args ...string) {
		t.Helper()
		if _, err := s.engine.Compose(s.ctx(), "shop", composeFile, args...); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		closed := s.hammer(s.loopback, slices.Concat(hostPort(8081), hostPort(8082))...)
		compose("up", "-d", "--no-color")
		s.open(s.permitted.Namespace, "", hostPorts("8080", "8081", "8082"))
		s.open(s.stranger.Namespace, "", hostPorts("8080", "8082"))
		s.closed(s.stranger.Namespace, hostPorts("8081"))
		s.open(s.loopback.Namespace, "", hostPorts("8080"))
		closed()
		web, err := s.engine.Container(s.ctx(), "shop_web_1")
		if err != nil {
			t.Fatal(err)
		}
		db, err := s.engine.Container(s.ctx(), "shop_db_1")
		if err != nil {
			t.Fatal(err)
		}
		s.open(web.Namespace, "", addrPorts(db.Addr4("shop_back"), "5432"))
		var straight []lab.Probe
		for _, a := range []netip.Addr{web.Addr4("shop_default"), web.Addr4("shop_back"), db.Addr4("shop_back")} {
			straight = append(straight, addrPorts(a, "80", "81", "5432")...)
		}
		s.closed(s.routed.Namespace, straight)
		compose("down", "-t", "0")
		s.closes(s.permitted.Namespace, hostPorts("8080", "8082"))
	}
}
