package dockerwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
)

// podmanSocket is the name of the socket of Podman's service, see
// podman-system-service(1).
const podmanSocket = "podman.sock"

// podmanSandboxes are the names of network namespaces that Podman makes. They
// lie in one folder with those of ip-netns(8), which are no containers'. See
// NewNSAt in containers/common, pkg/netns: netns-UUID, and cni-UUID before 4.0.
var podmanSandboxes = []string{"netns-*", "cni-*"}

// libpodNetworks is the list of networks in Podman's own API, which names each
// one's bridge. Docker's, as Podman answers it, does not.
// See https://docs.podman.io/en/latest/_static/api.html#tag/networks.
const libpodNetworks = "/v4.0.0/libpod/networks/json"

// podman is what Podman's answers to Docker's questions lack. It is used by one
// goroutine at a time.
type podman struct {
	// networks leads from a network's name to its ID: Podman writes the name
	// where Docker has the ID.
	networks map[string]string
	// configs are kept by container: they are fixed when one is created.
	configs map[string]podmanConfig
}

// podmanConfig is what only the inspection of a container tells. The list has
// no network mode, of a range of ports the first, and for a container in
// another's network that one's ports and addresses.
type podmanConfig struct {
	mode  string
	ports []container.Port
}

// listPodmanNetworks lists the networks as Docker would.
func (e *engine) listPodmanNetworks(ctx context.Context) ([]network.Summary, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(libpodNetworks), nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.cli.HTTPClient().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %s", libpodNetworks, resp.Status)
	}
	var list []struct {
		Name             string `json:"name"`
		ID               string `json:"id"`
		Driver           string `json:"driver"`
		NetworkInterface string `json:"network_interface"`
		Internal         bool   `json:"internal"`
		Subnets          []struct {
			Subnet string `json:"subnet"`
		} `json:"subnets"`
		Labels map[string]string `json:"labels"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, fmt.Errorf("%s: %w", libpodNetworks, err)
	}
	e.podman.networks = map[string]string{}
	out := make([]network.Summary, 0, len(list))
	for _, n := range list {
		e.podman.networks[n.Name] = n.ID
		s := network.Summary{
			Name: n.Name, ID: n.ID, Driver: n.Driver, Internal: n.Internal, Labels: n.Labels,
			Options: map[string]string{optionBridgeName: n.NetworkInterface},
		}
		for _, sub := range n.Subnets {
			s.IPAM.Config = append(s.IPAM.Config, network.IPAMConfig{Subnet: sub.Subnet})
		}
		out = append(out, s)
	}
	return out, nil
}

// url is where a path of the engine's API is, for what the client has no call
// for.
func (e *engine) url(path string) string {
	address, err := client.ParseHostURL(e.cli.DaemonHost())
	switch {
	case err != nil || address.Scheme == "unix":
		return "http://" + client.DummyHost + path // the transport dials the socket
	case os.Getenv(client.EnvOverrideCertPath) != "":
		return "https://" + address.Host + path
	default:
		return "http://" + address.Host + path
	}
}

// asDocker makes of Podman's list of containers the one that Docker would give.
// A container that cannot be inspected is left out of it: failed says why, by
// ID, and asking later may help.
func (e *engine) asDocker(ctx context.Context, list []container.Summary) (out []container.Summary, failed map[string]error) {
	failed = e.inspectPodman(ctx, list)
	for _, s := range list {
		c, ok := e.podman.configs[s.ID]
		if !ok {
			continue // failed, or gone in the meantime
		}
		s.HostConfig.NetworkMode, s.Ports = c.mode, c.ports
		s.Image = familiar(s.Image)
		if s.NetworkSettings != nil {
			s.NetworkSettings = e.podman.endpoints(s.NetworkSettings, c.mode)
		}
		out = append(out, s)
	}
	return out, failed
}

// endpoints gives what is a container's own of the endpoints in its list, with
// the IDs of the networks.
func (p *podman) endpoints(s *container.NetworkSettingsSummary, mode string) *container.NetworkSettingsSummary {
	own := &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{}}
	if strings.HasPrefix(mode, "container:") {
		return own
	}
	for name, settings := range s.Networks {
		if settings == nil {
			continue
		}
		with := *settings
		if id, ok := p.networks[name]; ok {
			with.NetworkID = id
		}
		own.Networks[name] = &with
	}
	return own
}

// inspectPodman learns the configurations of the containers that are not known
// yet, and forgets those of others once there are too many.
func (e *engine) inspectPodman(ctx context.Context, list []container.Summary) (failed map[string]error) {
	if len(e.podman.configs) > len(list)+cachedImages {
		e.podman.configs = map[string]podmanConfig{}
	}
	unknown := map[string]bool{}
	for _, s := range list {
		if _, known := e.podman.configs[s.ID]; !known {
			unknown[s.ID] = true
		}
	}
	found, failed := askEach(unknown, func(id string) (config podmanConfig, err error) {
		err = e.inspect(ctx, id, func(c container.InspectResponse) error {
			config, err = podmanConfigOf(c)
			return err
		})
		return config, err
	})
	maps.Copy(e.podman.configs, found)
	return failed
}

func podmanConfigOf(c container.InspectResponse) (podmanConfig, error) {
	if c.ContainerJSONBase == nil || c.HostConfig == nil || c.NetworkSettings == nil {
		return podmanConfig{}, errors.New("the answer has no HostConfig or no NetworkSettings")
	}
	out := podmanConfig{mode: string(c.HostConfig.NetworkMode)}
	if c.HostConfig.NetworkMode.IsContainer() {
		return out, nil // the ports are the other one's
	}
	for port, bindings := range c.NetworkSettings.Ports {
		for _, b := range bindings {
			host, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				return podmanConfig{}, fmt.Errorf("host port %q of %s", b.HostPort, port)
			}
			if b.HostIP != "" {
				if _, err := netip.ParseAddr(b.HostIP); err != nil {
					return podmanConfig{}, fmt.Errorf("host address of %s: %w", port, err)
				}
			}
			out.ports = append(out.ports, container.Port{
				IP: b.HostIP, PrivatePort: uint16(port.Int()), PublicPort: uint16(host), Type: port.Proto(),
			})
		}
	}
	return out, nil
}

// familiar is an image's name as Docker writes it and rules match it: nginx:1
// for docker.io/library/nginx:1.
func familiar(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return reference.FamiliarString(ref)
}
