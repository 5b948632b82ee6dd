package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/nftfw/nftfw/integration/lab"
)

// service is what compose.yaml says of nftfw. Every key of the file has a
// field, so that none is tested less than it is used.
type service struct {
	Image       string   `yaml:"image"`
	Name        string   `yaml:"container_name"`
	Restart     string   `yaml:"restart"`
	Network     string   `yaml:"network_mode"`
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	CapAdd      []string `yaml:"cap_add"`
	SecurityOpt []string `yaml:"security_opt"`
	Volumes     []string `yaml:"volumes"`
}

func readCompose(t *testing.T) service {
	t.Helper()
	f, err := os.Open("../packaging/image/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var file struct {
		Services struct {
			Nftfw service `yaml:"nftfw"`
		} `yaml:"services"`
	}
	decoder := yaml.NewDecoder(f)
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	return file.Services.Nftfw
}

// options are those of docker run that mean the same, with folders of the lab
// in place of the host's.
func (c service) options(folders map[string]string) []string {
	args := []string{"--name", c.Name, "--restart", c.Restart, "--network", c.Network}
	if c.ReadOnly {
		args = append(args, "--read-only")
	}
	for _, v := range c.CapDrop {
		args = append(args, "--cap-drop", v)
	}
	for _, v := range c.CapAdd {
		args = append(args, "--cap-add", v)
	}
	for _, v := range c.SecurityOpt {
		args = append(args, "--security-opt", v)
	}
	for _, v := range c.Volumes {
		host, rest, _ := strings.Cut(v, ":")
		inside, mode, hasMode := strings.Cut(rest, ":")
		v = folders[host] + ":" + inside
		if host == netnsFolder {
			v = folders[host] + ":" + folders[host] // the engine names them by its own path
		}
		if hasMode {
			v += ":" + mode
		}
		args = append(args, "-v", v)
	}
	return args
}

const netnsFolder = "/var/run/docker/netns"

// share lets mounts below a folder show up in containers, as systemd has it for
// the whole of a host.
func (s *set) share(folder string) {
	s.t.Helper()
	for _, args := range [][]string{{"--rbind", folder, folder}, {"--make-rshared", folder}} {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			s.t.Fatalf("mount %v: %v: %s", args, err, out)
		}
	}
	s.t.Cleanup(func() {
		if err := s.engine.RemoveAll(context.Background()); err != nil {
			s.t.Error(err)
		}
		if out, err := exec.Command("umount", "--recursive", "--lazy", folder).CombinedOutput(); err != nil {
			s.t.Errorf("umount %s: %v: %s", folder, err, out)
		}
	})
}

// The image as compose.yaml runs it: in the host's network, with CAP_NET_ADMIN
// alone, and nothing of its own to write to.
func TestContainerImage(t *testing.T) {
	s := bare(t, "--label", "test=image") // an engine that ends with the test
	if built.nftfw == "" {
		t.Fatal("nftfw was not built")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image.tar")
	if out, err := exec.Command("sh", "../packaging/image/build.sh", built.nftfw, image).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v: %s", err, out)
	}
	c := readCompose(t)
	s.run("web", "-p", "8080:80")
	s.open(s.stranger.Namespace, "web", hostPorts("8080"))
	netns := filepath.Join(filepath.Dir(strings.TrimPrefix(s.engine.Host(), "unix://")), "exec", "netns")
	s.share(netns)
	s.docker("import", "-c", `ENTRYPOINT ["/nftfw"]`, "-c", `CMD ["run"]`, image, c.Image)

	folders := map[string]string{
		"/etc/nftfw": filepath.Join(dir, "etc"), "/var/lib/nftfw": filepath.Join(dir, "state"), "/run/nftfw": filepath.Join(dir, "run"),
		"/var/run/docker.sock": strings.TrimPrefix(s.engine.Host(), "unix://"),
		netnsFolder:            netns,
	}
	for _, name := range []string{"etc", "state", "run"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc", "policy.yaml"), []byte("version: 1"+trust), 0o644); err != nil {
		t.Fatal(err)
	}
	s.docker(append(append([]string{"run", "-d"}, c.options(folders)...), c.Image)...)
	s.eventually(30*time.Second, func() error {
		out, err := s.engine.Docker(s.ctx(), "exec", c.Name, "/nftfw", "status")
		if err != nil || !strings.Contains(out, "yes") {
			return fmt.Errorf("status: %w: %s\n%s", err, out, s.docker("logs", c.Name))
		}
		return nil
	})
	s.closes(s.stranger.Namespace, hostPorts("8080"))
	s.open(s.permitted.Namespace, "web", hostPorts("8080"))

	t.Log("containers that come later, and their labels")
	s.runSpec(lab.Spec{Name: "shop", Options: []string{"-p", "8081:80", "--label", "nftfw.expose=any"}})
	s.run("plain", "-p", "8082:80")
	s.open(s.stranger.Namespace, "shop", hostPorts("8081"))
	s.open(s.permitted.Namespace, "plain", hostPorts("8082"))
	s.closed(s.stranger.Namespace, hostPorts("8080", "8082"))
	s.open(s.Host.Namespace, "plain", hostPorts("8082"))

	t.Log("what was set outlives the container")
	s.docker("exec", c.Name, "/nftfw", "sets", "add", "trusted", s.stranger.V4.String(), s.stranger.V6.String())
	s.open(s.stranger.Namespace, "plain", hostPorts("8082"))
	s.docker("restart", c.Name)
	s.open(s.stranger.Namespace, "plain", hostPorts("8082"))

	pid := strings.TrimSpace(s.docker("inspect", "-f", "{{.State.Pid}}", c.Name))
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	const netAdmin = "CapEff:\t0000000000001000" // bit 12, linux/capability.h
	if !strings.Contains(string(status), netAdmin) || !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("want %s and NoNewPrivs 1 in:\n%s", netAdmin, status)
	}
	s.docker("exec", c.Name, "/nftfw", "down", "--yes")
}
