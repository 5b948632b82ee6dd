package dockerwatch

import (
	"encoding/json"
	"testing"

	"github.com/docker/docker/api/types/system"
	"github.com/google/go-cmp/cmp"
)

func TestDecodeInfo(t *testing.T) {
	tests := []struct {
		name, answer string
		want         Info
	}{
		{
			"20.10", `{"ServerVersion": "20.10.24+dfsg1", "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"]}`,
			Info{Version: "20.10.24+dfsg1"},
		},
		{
			"29 with nftables", `{"ServerVersion": "29.0.1", "FirewallBackend": {"Driver": "nftables+firewalld"}}`,
			Info{Version: "29.0.1", FirewallDriver: "nftables+firewalld"},
		},
		{
			"rootless", `{"ServerVersion": "26.1.5", "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless", "name=cgroupns"]}`,
			Info{Version: "26.1.5", Rootless: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var i system.Info
			if err := json.Unmarshal([]byte(tt.answer), &i); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, decodeInfo(i)); diff != "" {
				t.Errorf("info (-want +got):\n%s", diff)
			}
		})
	}
}
