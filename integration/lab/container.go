package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

// Image is the name of the image that LoadImage makes: the echo server, with
// no labels.
const Image = "echo:1"

const echoPackage = "github.com/nftfw/nftfw/integration/lab/echo"

// BuildEcho builds the echo server into a folder and returns its path.
func BuildEcho(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "echo")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, echoPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := run(cmd)
	return bin, err
}

// LoadImage makes an image of the echo server. Changes are lines of a
// Dockerfile, such as `LABEL nftfw.expose=any`.
func (e *Engine) LoadImage(ctx context.Context, echo, name string, changes ...string) error {
	bin, err := os.ReadFile(echo)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "echo", Mode: 0o755, Size: int64(len(bin))}); err != nil {
		return err
	}
	if _, err := w.Write(bin); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	args := []string{"import", "--change", `ENTRYPOINT ["/echo"]`}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	cmd := e.docker(ctx, append(args, "-", name)...)
	cmd.Stdin = &layer
	_, err = run(cmd)
	return err
}

// Container is a container as it was when it was asked about.
type Container struct {
	Namespace // of its network

	ID    string
	Name  string
	PID   int
	Addrs map[string][]netip.Addr // by the network's name, IPv4 first
}

// Addr4 is the container's IPv4 address on a network, zero if it has none.
func (c *Container) Addr4(network string) netip.Addr { return c.addr(network, netip.Addr.Is4) }

// Addr6 is the container's global IPv6 address on a network, zero if none.
func (c *Container) Addr6(network string) netip.Addr { return c.addr(network, netip.Addr.Is6) }

func (c *Container) addr(network string, is func(netip.Addr) bool) netip.Addr {
	i := slices.IndexFunc(c.Addrs[network], is)
	if i < 0 {
		return netip.Addr{}
	}
	return c.Addrs[network][i]
}

// Spec describes a container to start. Its echo server calls itself Name.
type Spec struct {
	Name    string
	Image   string   // "" is Image
	Options []string // of docker run, such as "-p", "8080:80"
	Args    []string // of the echo server
}

// Run starts a container.
func (e *Engine) Run(ctx context.Context, s Spec) (*Container, error) {
	if _, err := e.Docker(ctx, e.specArgs(s, "run", "-d")...); err != nil {
		return nil, err
	}
	return e.Container(ctx, s.Name)
}

// Create makes a container and does not start it.
func (e *Engine) Create(ctx context.Context, s Spec) error {
	_, err := e.Docker(ctx, e.specArgs(s, "create")...)
	return err
}

func (e *Engine) specArgs(s Spec, verb ...string) []string {
	image := s.Image
	if image == "" {
		image = Image
	}
	return slices.Concat(verb,
		[]string{"--name", s.Name, "--hostname", s.Name, "--env", envMark + "=" + e.lab.name},
		s.Options, []string{image}, s.Args)
}

// Container asks the engine about a container.
func (e *Engine) Container(ctx context.Context, name string) (*Container, error) {
	var d struct {
		ID    string `json:"Id"`
		State struct {
			PID int `json:"Pid"`
		}
		NetworkSettings struct {
			SandboxKey string
			Networks   map[string]struct{ IPAddress, GlobalIPv6Address string }
		}
	}
	if err := e.inspect(ctx, "container", name, &d); err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/proc/%d/ns/net", d.State.PID)
	if e.podman != "" {
		path = d.NetworkSettings.SandboxKey // Podman knows processes by other numbers
	}
	c := &Container{
		Namespace: PathNamespace(path),
		ID:        d.ID, Name: name, PID: d.State.PID,
		Addrs: map[string][]netip.Addr{},
	}
	for network, n := range d.NetworkSettings.Networks {
		for _, s := range []string{n.IPAddress, n.GlobalIPv6Address} {
			if s == "" {
				continue
			}
			a, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("container %s on network %s: %w", name, network, err)
			}
			c.Addrs[network] = append(c.Addrs[network], a)
		}
	}
	return c, nil
}

// Signal sends a signal to the container's first process without the engine's
// knowledge.
func (c *Container) Signal(sig syscall.Signal) error {
	if err := syscall.Kill(c.PID, sig); err != nil {
		return fmt.Errorf("signal container %s: %w", c.Name, err)
	}
	return nil
}
