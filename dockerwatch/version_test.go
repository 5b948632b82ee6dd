package dockerwatch

import (
	"net/http"
	"slices"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestWithoutNAT6(t *testing.T) {
	tests := []struct {
		name         string
		version      string
		experimental bool
		want         bool
	}{
		{"20.10 of Debian", "20.10.24+dfsg1", false, true},
		{"26.1", "26.1.5", false, true},
		{"it may have been asked for", "26.1.5", true, false},
		{"by default from 27", "27.0.1", false, false},
		{"28", "28.5.2", false, false},
		{"no number", "dev", false, false},
		{"not Docker's number", "master-26", false, false},
		{"nothing", "", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := withoutNAT6(tt.version, tt.experimental); got != tt.want {
				t.Errorf("withoutNAT6(%q, %v) = %v, want %v", tt.version, tt.experimental, got, tt.want)
			}
		})
	}
}

// What an engine is shows in its answer to a ping, or to the question for its
// version.
func TestGreet(t *testing.T) {
	docker := func(server, experimental string) map[string]string {
		return map[string]string{"Server": server, "Docker-Experimental": experimental}
	}
	tests := []struct {
		name    string
		ping    map[string]string // headers
		version object
		want    greeted
	}{
		{"docker's ping tells", docker("Docker/20.10.24+dfsg1 (linux)", "false"), nil, greeted{Version: "20.10.24+dfsg1", NoNAT6: true}},
		{"docker with experimental features", docker("Docker/26.1.5 (linux)", "true"), nil, greeted{Version: "26.1.5"}},
		{"docker that does NAT for IPv6", docker("Docker/28.5.2 (linux)", "false"), nil, greeted{Version: "28.5.2"}},
		{"docker behind a proxy that hides it", docker("", ""), engineVersion("Engine", "26.1.5"), greeted{Version: "26.1.5", NoNAT6: true, Asked: true}},
		{"podman", map[string]string{"Server": "Libpod/4.3.1 (linux)"}, engineVersion("Podman Engine", "4.3.1"), greeted{Version: "4.3.1", Podman: true, Asked: true}},
		{"something else", nil, engineVersion("Other", "1.2.3"), greeted{Version: "1.2.3", Asked: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeEngine(t)
			f.edit(func() {
				f.ping = tt.ping
				f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
					if c.what != "version" {
						return false
					}
					reply(w, tt.version)
					return true
				}
			})
			e, err := dial(Options{Host: "unix://" + f.path}.withDefaults())
			if err != nil {
				t.Fatal(err)
			}
			defer e.close()
			version, err := e.greet(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := greeted{Version: version, NoNAT6: e.noNAT6, Podman: e.podman != nil, Asked: len(f.got("version")) > 0}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if api := e.cli.ClientVersion(); api != "1.41" {
				if _, err := e.cli.ContainerList(t.Context(), container.ListOptions{}); err != nil || e.cli.ClientVersion() != "1.41" {
					t.Errorf("speaks version %s of the API, err %v", e.cli.ClientVersion(), err)
				}
			}
		})
	}
}

// greeted is what is known of an engine once it was greeted.
type greeted struct {
	Version string
	NoNAT6  bool
	Podman  bool
	Asked   bool // for its version
}

func engineVersion(component, version string) object {
	return object{"Version": version, "ApiVersion": "1.41", "Components": []object{{"Name": "other", "Version": "1"}, {"Name": component, "Version": version}}}
}

// An engine may be another after a restart.
func TestIPv6IsRoutedWithoutNAT(t *testing.T) {
	f := newFakeEngine(t)
	network := func(id, subnet string) object {
		return object{"Id": id, "Name": id, "Driver": "bridge", "IPAM": object{"Config": []object{{"Subnet": "172.30.0.0/24"}, {"Subnet": subnet}}}}
	}
	f.edit(func() {
		f.networks = []object{network("both-families", "fd00:d0c:1::/64"), network("four-alone", "172.31.0.0/24")}
	})
	var version string
	f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
		if c.what != "version" {
			return false
		}
		reply(w, engineVersion("Engine", version))
		return true
	}
	type modes struct{ four, six inventory.GatewayMode }
	for _, tt := range []struct {
		version string
		want    map[string]modes
	}{
		{"26.1.5", map[string]modes{"both-families": {six: inventory.GatewayRouted}, "four-alone": {}}},
		{"28.5.2", map[string]modes{"both-families": {}, "four-alone": {}}},
	} {
		version = tt.version
		snap, err := List(t.Context(), Options{Host: "unix://" + f.path})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]modes{}
		for _, n := range snap.Networks {
			got[n.Name] = modes{n.Gateway4, n.Gateway6}
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(modes{})); diff != "" {
			t.Errorf("engine %s: gateway modes (-want +got):\n%s", tt.version, diff)
		}
	}
}

// From release 29 on a list lacks ports that have no port of the host.
func TestPortsOnRoutedNetworks(t *testing.T) {
	f := newFakeEngine(t)
	f.edit(func() {
		f.networks = []object{
			{"Id": netA, "Name": "a", "Driver": "bridge", "Options": object{optionGatewayMode6: "routed"}},
			{"Id": netB, "Name": "b", "Driver": "bridge"},
		}
	})
	routed := box(1, netA)
	routed["Ports"] = []object{{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}}
	f.set(routed)
	f.set(box(2, netB))
	var version string
	var asked []string
	f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
		switch c.what {
		case "version":
			reply(w, engineVersion("Engine", version))
		case "container":
			asked = append(asked, c.name)
			reply(w, object{"Id": c.name, "NetworkSettings": object{"Ports": object{
				"80/tcp": []object{{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": ""}},
				"53/udp": []object{{"HostIp": "::", "HostPort": ""}}, "81/tcp": nil,
			}}})
		default:
			return false
		}
		return true
	}
	published := tcp("0.0.0.0", 8080, 80)
	for _, tt := range []struct {
		version string
		want    []inventory.Port
	}{
		{"28.5.2", []inventory.Port{published}},
		{"29.1.0", []inventory.Port{{ContainerPort: 53, Proto: 17}, tcp("", 0, 80), published}},
	} {
		version, asked = tt.version, nil
		snap, err := List(t.Context(), Options{Host: "unix://" + f.path})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, snap.Containers[0].Ports, comparePort); diff != "" {
			t.Errorf("engine %s: ports (-want +got):\n%s", tt.version, diff)
		}
		if slices.Contains(asked, id(2)) || len(tt.want) == 1 && slices.Contains(asked, id(1)) {
			t.Errorf("engine %s was asked about %q", tt.version, asked)
		}
	}
}
