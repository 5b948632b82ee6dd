package dockerwatch

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// What engine 20.10.24 sends for a container with two networks, published and
// exposed ports and a link; one that shares its network; and one linked to it.
func TestListOfEngine2010(t *testing.T) {
	f := newFakeEngine(t)
	f.images["sha256:92f6017e741e3c65c3ec403b5737b175cb5c5d8f2bddd75a725ddb1cc06bbffd"] = object{"nftfw.expose": "any"}
	f.answer = func(w http.ResponseWriter, _ *http.Request, c call) bool {
		if c.what != "containers" && c.what != "networks" {
			return false
		}
		text, err := os.ReadFile("testdata/" + c.what + "-20.10.json")
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(text)
		return true
	}
	got, err := List(context.Background(), Options{Host: "unix://" + f.path})
	if err != nil {
		t.Fatal(err)
	}

	const (
		aa      = "a365660efd7c39a6f5f5e156b02013d24516dd959cb8313ac3a830ed05402469"
		bridge  = "0b63a0403e8578111f084a332ec11792b9b63ea0721f8c9341793fed046960b9"
		n2      = "5f56d19eee912caf01891eacc171dc744d379d19860290e0969b66eb02ef00c5"
		imageID = "sha256:92f6017e741e3c65c3ec403b5737b175cb5c5d8f2bddd75a725ddb1cc06bbffd"
	)
	expose := map[string]string{"nftfw.expose": "any"}
	want := inventory.Snapshot{
		Engine: inventory.EngineListed,
		Containers: []inventory.Container{{
			ID: "a0727eb52d5fe61f7f2e59f70f09e755264f22573cbf3b65e31921cc08f34668", Name: "ll",
			Image: "echo:1", ImageID: imageID, Labels: expose, ImageLabels: expose, NetworkMode: "bridge",
			Endpoints: []inventory.Endpoint{{NetworkID: bridge, Addr4: addr("172.17.0.3")}},
		}, {
			ID: aa, Name: "aa",
			Image: "echo:1", ImageID: imageID, NetworkMode: "bridge",
			Labels:      map[string]string{"nftfw.expose": "any", "x": "y"},
			ImageLabels: expose,
			Endpoints: []inventory.Endpoint{
				{NetworkID: bridge, Addr4: addr("172.17.0.2")},
				{NetworkID: n2, Addr4: addr("172.21.0.2")},
			},
			Ports: []inventory.Port{
				{HostIP: addr("0.0.0.0"), HostPort: 8080, ContainerPort: 80, Proto: 6},
				{HostIP: addr("::"), HostPort: 8080, ContainerPort: 80, Proto: 6},
				{HostIP: addr("127.0.0.1"), HostPort: 81, ContainerPort: 81, Proto: 17},
				{ContainerPort: 99, Proto: 6},
			},
		}, {
			ID: "fe8db46eb252d614cc61f43306d446fced77ac40fa708884c94e7b33eb874a8a", Name: "cc",
			Image: "echo:1", ImageID: imageID, Labels: expose, ImageLabels: expose, NetworkMode: "container:" + aa,
		}},
		Networks: []inventory.Network{
			{ID: bridge, Name: "bridge", Driver: "bridge", Bridge: "docker0", Subnets: prefixes("172.17.0.0/16")},
			{ID: "0d666d172798b2efefdbc6a3b80dd1d309f7ae7be20693434d9a2582de703b19", Name: "none", Driver: "null"},
			{ID: "3a7d368ed4f95e6a7ae4c21b073fa4aa12b9945a5a006e7e1b1a2d5dfcc1a9cd", Name: "n6", Driver: "bridge", Bridge: "brx", Subnets: prefixes("172.19.0.0/16", "fd00:5::/64")},
			{ID: "8724b4f95b2cd28846d5819dfbdbe20da87627d5df262228616ad353dd4e37ca", Name: "host", Driver: "host"},
			{ID: "91d92e50e33b9b0d25f36adcff8cf313e9d9ec5382dd9d3c8433b9b9e46dbf51", Name: "n2", Driver: "bridge", Bridge: "br-91d92e50e33b", Subnets: prefixes("172.18.0.0/16")},
		},
	}
	if diff := cmp.Diff(want, got, values, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

var values = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestDecodeContainer(t *testing.T) {
	const head = `"Id": "1", "Names": ["/web"], `
	tests := []struct {
		name     string
		json     string
		want     inventory.Container
		gone     bool
		problems int
	}{
		{
			name: "empty IP is both wildcards", json: `"Ports": [{"PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]`,
			want: inventory.Container{Ports: []inventory.Port{
				{HostIP: addr("0.0.0.0"), HostPort: 8080, ContainerPort: 80, Proto: 6},
				{HostIP: addr("::"), HostPort: 8080, ContainerPort: 80, Proto: 6},
			}},
		},
		{
			name: "protocols", json: `"Ports": [{"PrivatePort": 1, "Type": "udp"}, {"PrivatePort": 1, "Type": "sctp"}, {"PrivatePort": 1, "Type": "tcp"}]`,
			want: inventory.Container{Ports: []inventory.Port{
				{ContainerPort: 1, Proto: 6}, {ContainerPort: 1, Proto: 17}, {ContainerPort: 1, Proto: 132},
			}},
		},
		{
			name: "unknown protocol", json: `"Ports": [{"PrivatePort": 80, "PublicPort": 8080, "Type": "quic"}, {"PrivatePort": 81, "Type": "tcp"}]`,
			want: inventory.Container{Ports: []inventory.Port{{ContainerPort: 81, Proto: 6}}}, problems: 1,
		},
		{name: "bad host address", json: `"Ports": [{"IP": "1.2.3", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]`, problems: 1},
		{name: "host address with a zone", json: `"Ports": [{"IP": "fe80::1%eth0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}]`, problems: 1},
		{name: "port 0", json: `"Ports": [{"IP": "0.0.0.0", "PublicPort": 8080, "Type": "tcp"}]`, problems: 1},
		{
			name: "dual stack", json: `"NetworkSettings": {"Networks": {"n": {"NetworkID": "x", "IPAddress": "172.18.0.2", "GlobalIPv6Address": "fd00::2"}}}`,
			want: inventory.Container{Endpoints: []inventory.Endpoint{{NetworkID: "x", Addr4: addr("172.18.0.2"), Addr6: addr("fd00::2")}}},
		},
		{
			name: "bad address beside a good one", json: `"NetworkSettings": {"Networks": {"n": {"NetworkID": "x", "IPAddress": "172.18.0.2/16", "GlobalIPv6Address": "fd00::2"}}}`,
			want: inventory.Container{Endpoints: []inventory.Endpoint{{NetworkID: "x", Addr6: addr("fd00::2")}}}, problems: 1,
		},
		{
			name: "addresses of the other family", json: `"NetworkSettings": {"Networks": {"n": {"NetworkID": "x", "IPAddress": "fd00::2", "GlobalIPv6Address": "172.18.0.2"}}}`,
			want: inventory.Container{Endpoints: []inventory.Endpoint{{NetworkID: "x"}}}, problems: 2,
		},
		{name: "endpoint without network", json: `"NetworkSettings": {"Networks": {"n": {"IPAddress": "172.18.0.2"}, "m": null}}`, problems: 1},
		{name: "network mode default is bridge", json: `"HostConfig": {"NetworkMode": "default"}`, want: inventory.Container{NetworkMode: "bridge"}},
		{name: "link names", json: `"Names": ["/other/alias", "/web"]`},
		{name: "nothing known", json: `"Labels": null`},
		{name: "paused runs", json: `"State": "paused"`},
		{name: "a state we do not know runs", json: `"State": "dreaming"`},
		{name: "restarting has no address", json: `"State": "restarting"`, gone: true},
		{name: "exited", json: `"State": "exited"`, gone: true},
		{name: "no ID", json: `"Id": ""`, gone: true, problems: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s container.Summary
			if err := json.Unmarshal([]byte("{"+head+tt.json+"}"), &s); err != nil {
				t.Fatal(err)
			}
			got, ok := decodeContainer(s)
			if ok == tt.gone {
				t.Errorf("running: %v", ok)
			}
			if len(got.problems) != tt.problems {
				t.Errorf("problems: %v, want %d", got.problems, tt.problems)
			}
			if tt.gone {
				return
			}
			tt.want.ID, tt.want.Name = "1", "web"
			if diff := cmp.Diff(tt.want, got.Container, values, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("container (-want +got):\n%s", diff)
			}
			for _, p := range got.problems {
				if p.name != "web" {
					t.Errorf("problem %+v does not name the container", p)
				}
			}
		})
	}
}

func TestDecodeNetwork(t *testing.T) {
	const id = "91d92e50e33b9b0d25f36adcff8cf313e9d9ec5382dd9d3c8433b9b9e46dbf51"
	tests := []struct {
		name     string
		json     string
		want     inventory.Network
		problems int
	}{
		{
			name: "bridge", json: `"Driver": "bridge", "Internal": true, "Labels": {"a": "b"}`,
			want: inventory.Network{Driver: "bridge", Bridge: "br-91d92e50e33b", Internal: true, Labels: map[string]string{"a": "b"}},
		},
		{
			name: "gateway modes", json: `"Driver": "bridge", "Options": {"com.docker.network.bridge.gateway_mode_ipv4": "routed", "com.docker.network.bridge.gateway_mode_ipv6": "nat-unprotected"}`,
			want: inventory.Network{Driver: "bridge", Bridge: "br-91d92e50e33b", Gateway4: inventory.GatewayRouted, Gateway6: inventory.GatewayNATUnprotected},
		},
		{
			name: "not a bridge", json: `"Driver": "macvlan", "Options": {"com.docker.network.bridge.name": "x"}`,
			want: inventory.Network{Driver: "macvlan"},
		},
		{
			name: "name that no link can have", json: `"Driver": "bridge", "Options": {"com.docker.network.bridge.name": "a\" }"}`,
			want: inventory.Network{Driver: "bridge"}, problems: 1,
		},
		{
			name: "subnets", json: `"Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.1.2.3/16"}, {"Subnet": "nonsense"}, {}]}`,
			want: inventory.Network{Driver: "overlay", Subnets: prefixes("10.1.0.0/16")}, problems: 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s network.Summary
			if err := json.Unmarshal([]byte(`{"Id": "`+id+`", "Name": "n", `+tt.json+"}"), &s); err != nil {
				t.Fatal(err)
			}
			got, problems, ok := decodeNetwork(s)
			tt.want.ID, tt.want.Name = id, "n"
			if diff := cmp.Diff(tt.want, got, values, cmpopts.EquateEmpty()); diff != "" || !ok {
				t.Errorf("ok %v, network (-want +got):\n%s", ok, diff)
			}
			if len(problems) != tt.problems {
				t.Errorf("problems: %v, want %d", problems, tt.problems)
			}
		})
	}
}
