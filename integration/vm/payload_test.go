package vm

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The kernel reads what busybox's cpio does.
func TestPayload(t *testing.T) {
	if !wanted() {
		t.Skip("needs busybox: make test-vm")
	}
	files := []File{
		{Path: "/etc/nftfw/policy.yaml", Mode: 0o600, Text: "version: 1\n"},
		{Path: "/etc/name", Text: "first"},
		{Path: "/etc/name", Text: "second"},
		Enable("/usr/lib/systemd/system/docker.service", "multi-user.target"),
	}
	var b bytes.Buffer
	if err := writePayload(&b, files); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", `
		busybox cpio -i -d 2>/dev/null
		find payload | sort
		cat payload/etc/nftfw/policy.yaml payload/etc/name
		stat -c %a payload/etc/nftfw/policy.yaml payload/etc/name payload/etc
		readlink payload/etc/systemd/system/multi-user.target.wants/docker.service`)
	cmd.Dir, cmd.Stdin = t.TempDir(), &b
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := []string{
		"payload", "payload/etc", "payload/etc/name", "payload/etc/nftfw", "payload/etc/nftfw/policy.yaml",
		"payload/etc/systemd", "payload/etc/systemd/system", "payload/etc/systemd/system/multi-user.target.wants",
		"payload/etc/systemd/system/multi-user.target.wants/docker.service",
		"version: 1", "second600", "644", "755", "/usr/lib/systemd/system/docker.service",
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(string(out)), "\n")); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
}
