package dockerwatch

import (
	"net/http"
	"testing"

	"github.com/docker/docker/api/types"
	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/inventory"
)

func TestWithoutNAT6(t *testing.T) {
	tests := []struct {
		name         string
		version      string
		component    string
		experimental bool
		want         bool
	}{
		{"20.10 of Debian", "20.10.24+dfsg1", "Engine", false, true},
		{"26.1", "26.1.5", "Engine", false, true},
		{"it may have been asked for", "26.1.5", "Engine", true, false},
		{"by default from 27", "27.0.1", "Engine", false, false},
		{"28", "28.5.2", "Engine", false, false},
		{"podman", "4.3.1", "Podman Engine", false, false},
		{"no number", "dev", "Engine", false, false},
		{"not Docker's number", "master-26", "Engine", false, false},
		{"nothing", "", "", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := types.Version{
				Version: tt.version, Experimental: tt.experimental,
				Components: []types.ComponentVersion{{Name: tt.component}, {Name: "containerd"}},
			}
			if got := withoutNAT6(v); got != tt.want {
				t.Errorf("withoutNAT6(%+v) = %v, want %v", v, got, tt.want)
			}
		})
	}
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
		reply(w, object{"Version": version, "ApiVersion": "1.41", "Components": []object{{"Name": "Engine", "Version": version}}})
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
