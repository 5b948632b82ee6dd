package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/nftfw/nftfw/integration/lab"
)

// nobody is a router that is not there. A machine has a default route like any
// other; without one Swarm is slow to start its ingress.
const nobody4, nobody6 = "198.18.255.254", "fd00:18::fffe"

// network are the files that give the machine its name and addresses.
// networkd raises the link after network-pre.target, as Debian's other means
// to that end do.
func (m *Machine) network() []File {
	return []File{
		{Path: "/etc/hostname", Text: m.Name + "\n"},
		{Path: "/etc/hosts", Text: "127.0.0.1 localhost " + m.Name + "\n::1 localhost\n"},
		{Path: "/etc/systemd/network/eth0.network", Text: fmt.Sprintf(`[Match]
Name=eth0
[Network]
Address=%s/%d
Address=%s/%d
Gateway=%s
Gateway=%s
IPv6AcceptRA=no
`, m.V4, lab.Net4.Bits(), m.V6, lab.Net6.Bits(), nobody4, nobody6)},
	}
}

// Programs are what machines run besides Debian's own: paths on this machine.
type Programs struct {
	Agent string
	Echo  string
	Nftfw string
}

// BuildPrograms builds them into a folder, except a binary of nftfw that
// NFTFW_BIN names.
func BuildPrograms(ctx context.Context, dir string) (Programs, error) {
	echo, err := lab.BuildEcho(ctx, dir)
	if err != nil {
		return Programs{}, err
	}
	p := Programs{Agent: filepath.Join(dir, "agent"), Echo: echo, Nftfw: os.Getenv("NFTFW_BIN")}
	build := map[string]string{p.Agent: "github.com/nftfw/nftfw/integration/vm/agent"}
	if p.Nftfw == "" {
		p.Nftfw = filepath.Join(dir, "nftfw")
		build[p.Nftfw] = "github.com/nftfw/nftfw/cmd/nftfw"
	}
	for to, from := range build {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", to, from)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return Programs{}, fmt.Errorf("build %s: %w: %s", from, err, out)
		}
	}
	return p, nil
}

// agentUnit starts the agent before anything that a test might ask about.
const agentUnit = `[Unit]
Description=agent of the tests
DefaultDependencies=no
After=systemd-remount-fs.service
[Service]
ExecStart=/usr/local/sbin/agent
OOMScoreAdjust=-1000
`

// Paths of files on a machine.
const (
	unitPath   = "/etc/systemd/system/nftfw.service"
	nftfwPath  = "/usr/sbin/nftfw"
	echoPath   = "/usr/local/bin/echo-server"
	PolicyPath = "/etc/nftfw/policy.yaml"
)

// Base is what every machine needs at its first boot: the agent that runs the
// tests' commands, and the echo server.
func (p Programs) Base() []File {
	return []File{
		{Path: "/usr/local/sbin/agent", Mode: 0o755, From: p.Agent},
		{Path: "/etc/systemd/system/agent.service", Text: agentUnit},
		Enable("/etc/systemd/system/agent.service", "sysinit.target"),
		{Path: echoPath, Mode: 0o755, From: p.Echo},
	}
}

// Docker enables the engine at boot.
func Docker() []File {
	return []File{
		Enable("/usr/lib/systemd/system/containerd.service", "multi-user.target"),
		Enable("/usr/lib/systemd/system/docker.service", "multi-user.target"),
		Enable("/usr/lib/systemd/system/docker.socket", "sockets.target"),
	}
}

// Firewall is nftfw as it is installed: its binary, its unit, enabled, and a
// policy unless that is "". The unit is the tree's own.
func (p Programs) Firewall(policy string) []File {
	files := []File{
		{Path: nftfwPath, Mode: 0o755, From: p.Nftfw},
		{Path: unitPath, From: filepath.Join("..", "..", "packaging", "systemd", "nftfw.service")},
		Enable(unitPath, "multi-user.target"),
	}
	if policy != "" {
		files = append(files, File{Path: PolicyPath, Mode: 0o600, Text: policy})
	}
	return files
}

// LoadEcho makes the image of the echo server known to the machine's engine, as
// lab.Image.
func (m *Machine) LoadEcho(ctx context.Context) error {
	_, err := m.Shell(ctx, `
		dir=$(mktemp -d)
		install -m 0755 `+echoPath+` $dir/echo
		tar -C $dir -cf - echo | docker import --change 'ENTRYPOINT ["/echo"]' - `+lab.Image+`
		rm -r $dir`)
	return err
}
