package dockerwatch

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// bindings is a container's configuration as its inspection tells it.
func bindings(of object, exposed ...string) object {
	ports := object{}
	for _, p := range exposed {
		ports[p] = object{}
	}
	return object{"HostConfig": object{"PortBindings": of}, "Config": object{"ExposedPorts": ports}}
}

// binding is one of them, to the host port with this text at this address.
func binding(addr, port string) []object { return []object{{"HostIp": addr, "HostPort": port}} }

// foreseenOf gives the foreseen ports of container 2 while it starts.
func foreseenOf(s inventory.Snapshot) []inventory.Port {
	for _, c := range s.Containers {
		if c.ID == id(2) && c.Starting {
			return c.Foreseen
		}
	}
	return nil
}

func tcp(host string, hostPort, containerPort uint16) inventory.Port {
	p := inventory.Port{HostPort: hostPort, ContainerPort: containerPort, Proto: 6}
	if host != "" {
		p.HostIP = netip.MustParseAddr(host)
	}
	return p
}

var comparePort = cmp.Comparer(func(a, b inventory.Port) bool { return a == b })

// The ports of a new container are known before its process runs.
func TestRunForesees(t *testing.T) {
	tests := []struct {
		name   string
		config object
		want   []inventory.Port
	}{
		{
			"a port on every address", bindings(object{"80/tcp": binding("", "8080")}),
			[]inventory.Port{tcp("0.0.0.0", 8080, 80), tcp("::", 8080, 80)},
		},
		{"a port on one", bindings(object{"80/tcp": binding("127.0.0.1", "8080")}), []inventory.Port{tcp("127.0.0.1", 8080, 80)}},
		{"exposed and not published", bindings(object{}, "81/tcp"), []inventory.Port{tcp("", 0, 81)}},
		{"the engine chooses", bindings(object{"80/tcp": binding("127.0.0.1", "")}), []inventory.Port{tcp("", 0, 80)}},
		{"the engine chooses from a range", bindings(object{"80/tcp": binding("0.0.0.0", "8000-8010")}), []inventory.Port{tcp("", 0, 80)}},
		{
			"nonsense is left out", bindings(object{"x/tcp": binding("", "1"), "80/xyz": binding("", "1"), "0/tcp": binding("", "1"), "82/tcp": binding("nowhere", "1")}, "81/tcp"),
			[]inventory.Port{tcp("", 0, 81)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			r := start(t, f, nil)
			r.first()
			f.edit(func() { f.configs[id(2)] = tt.config })
			f.set(created(2))
			f.container("create", id(2))
			f.attach(2, netA)
			f.network("connect", netA, id(2))
			s := r.until("its ports", func(s inventory.Snapshot) bool { return foreseenOf(s) != nil })
			if diff := cmp.Diff(tt.want, foreseenOf(s), comparePort); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			f.set(box(2, netA))
			f.container("start", id(2))
			s = r.until("it runs", at("c2 a!"))
			if c := s.Containers[0]; len(c.Foreseen) > 0 || len(c.Ports) != 1 {
				t.Errorf("of one that runs: ports %v, foreseen %v", c.Ports, c.Foreseen)
			}
		})
	}
}

// What a container had is what it will have, until it is removed.
func TestRunForeseesWhatWas(t *testing.T) {
	f := newFakeEngine(t)
	f.set(box(2, netA))
	f.attach(2, netA)
	r := start(t, f, nil)
	r.first()
	again := func() inventory.Snapshot {
		f.set(created(2))
		f.container("die", id(2))
		r.until("it ended", at())
		f.network("connect", netA, id(2))
		return r.until("it starts", at("c2+ a!"))
	}
	if diff := cmp.Diff([]inventory.Port{tcp("0.0.0.0", 8002, 80)}, foreseenOf(again()), comparePort); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	f.container("destroy", id(2))
	if got := foreseenOf(again()); got != nil {
		t.Errorf("of a new one with the same ID: %v", got)
	}
}

// An engine that does not tell changes nothing.
func TestRunForeseesNothing(t *testing.T) {
	f := newFakeEngine(t)
	r := start(t, f, nil)
	r.first()
	f.refuse("container")
	f.set(created(2))
	f.container("create", id(2))
	eventually(t, "inspected", func() bool { return len(f.got("container")) > 0 })
	f.attach(2, netA)
	f.network("connect", netA, id(2))
	if got := foreseenOf(r.until("it starts", at("c2+ a!"))); got != nil {
		t.Errorf("foreseen: %v", got)
	}
}
