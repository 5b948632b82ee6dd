package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Podman prepares Podman, with the API that it has in common with Docker, in
// the host's namespace and with folders of its own. Backend is its network
// backend: netavark or cni. It is not started.
func (l *Lab) Podman(backend string) (*Engine, error) {
	bin, err := exec.LookPath("podman")
	if err != nil {
		return nil, ErrNoEngine
	}
	out, err := run(exec.Command(bin, "--version"))
	if err != nil {
		return nil, err
	}
	version := strings.TrimSpace(strings.TrimPrefix(out, "podman version "))
	e, err := l.newEngine(bin, version)
	if err != nil {
		return nil, err
	}
	e.podman = backend
	return e, nil
}

// podmanConfig keeps Podman within a folder, %[1]s, and within what a process
// in a lab may set.
const podmanConfig = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
[network]
network_backend = "%[2]s"
network_config_dir = "%[1]s/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "%[1]s/tmp"
`

// podmanInit is run by a shell in namespaces of mounts and processes of their
// own, with a folder and the command of Podman. What Podman's backends share on
// a machine is replaced by folders of the lab's; /run/netns stays, for nftfw to
// see. Whatever Podman starts ends with it.
const podmanInit = `set -e
mount --make-private /
mkdir -p /var/lib/cni /run/containers
mount --bind "$0/cni" /var/lib/cni
mount --bind "$0/run" /run/containers
exec "$@"`

// podmanCommand is what starts Podman.
func (e *Engine) podmanCommand(ctx context.Context) (*exec.Cmd, error) {
	for _, name := range []string{"cni", "run", "networks", "tmp", "root", "runroot"} {
		if err := os.MkdirAll(filepath.Join(e.dir, name), 0o711); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(e.dir, "containers.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, podmanConfig, e.dir, e.podman), 0o644); err != nil {
		return nil, err
	}
	cmd := e.lab.Host.Command(ctx, "unshare",
		"--mount", "--propagation", "unchanged", "--pid", "--kill-child", "--mount-proc",
		"sh", "-c", podmanInit, e.dir,
		e.bin, "--root", filepath.Join(e.dir, "root"), "--runroot", filepath.Join(e.dir, "runroot"),
		"--tmpdir", filepath.Join(e.dir, "tmp"), "--network-config-dir", filepath.Join(e.dir, "networks"),
		"system", "service", "--time", "0", e.Host())
	cmd.Env = e.lab.env("CONTAINERS_CONF=" + conf)
	return cmd, nil
}

// podmanSandbox is how the configuration of a container names its network
// namespace, whose file lies where those of others are.
var podmanSandbox = regexp.MustCompile(`/run/netns/(?:netns|cni)-[0-9a-f-]+`)

// forgetSandboxes removes the network namespaces of Podman's containers that
// were killed with it, of the lab in a folder.
func forgetSandboxes(dir string) error {
	configs, err := filepath.Glob(filepath.Join(dir, "engine", "root", "*-containers", "*", "userdata", "config.json"))
	if err != nil {
		return err
	}
	for _, path := range configs {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, ns := range podmanSandbox.FindAllString(string(text), -1) {
			// Podman removes them itself when a container is removed.
			_ = unix.Unmount(ns, unix.MNT_DETACH)
			_ = os.Remove(ns)
		}
	}
	return nil
}
