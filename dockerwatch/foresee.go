package dockerwatch

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-connections/nat"

	"github.com/nftfw/nftfw/pkg/inventory"
)

// foreseenMost bounds the memory for the ports of containers that do not run.
const foreseenMost = 8192

// foreseen is what the inspection of a new container says of its ports.
type foreseen struct {
	id    string
	ports []inventory.Port
}

// foresee asks for the ports of a container that was just created. Nothing waits
// for the answer: the engine gives none once it has begun to start the container,
// and then its list has them in a moment anyway. So it is called the moment the
// event is there, by whoever reads it.
func (l *loop) foresee(ctx context.Context, id string) {
	if l.e.podman != nil {
		return // it tells of no start before the process runs
	}
	select {
	case l.inspecting <- struct{}{}:
	default:
		return // a crowd is made, and is told of by lists
	}
	l.wg.Go(func() {
		defer func() { <-l.inspecting }()
		ports, err := l.e.configuredPorts(ctx, id)
		if err != nil {
			l.w.o.Log.Debug("ports of a new container not learned before its start", "err", err)
			return
		}
		select {
		case l.foreseen <- foreseen{id, ports}:
		case <-ctx.Done():
		}
	})
}

// configuredPorts returns the ports that a container will have when it runs.
func (e *engine) configuredPorts(ctx context.Context, id string) ([]inventory.Port, error) {
	d := decoded{Container: inventory.Container{ID: id}}
	err := e.inspect(ctx, id, func(c container.InspectResponse) error {
		if c.ContainerJSONBase == nil || c.HostConfig == nil || c.Config == nil {
			return errors.New("the answer has no configuration")
		}
		for port := range c.Config.ExposedPorts {
			d.addConfigured(port, nat.PortBinding{})
		}
		for port, bindings := range c.HostConfig.PortBindings {
			for _, b := range bindings {
				d.addConfigured(port, b)
			}
		}
		return nil
	})
	slices.SortFunc(d.Ports, comparePorts)
	return slices.Compact(d.Ports), err
}

// routedPorts returns the ports of a container that runs which are published without
// a port of the host.
func (e *engine) routedPorts(ctx context.Context, id string) ([]inventory.Port, error) {
	d := decoded{Container: inventory.Container{ID: id}}
	err := e.inspect(ctx, id, func(c container.InspectResponse) error {
		if c.NetworkSettings == nil {
			return errors.New("the answer has no network settings")
		}
		for port, bindings := range c.NetworkSettings.Ports {
			if slices.ContainsFunc(bindings, func(b nat.PortBinding) bool { return b.HostPort == "" }) {
				d.addConfigured(port, nat.PortBinding{})
			}
		}
		return nil
	})
	return d.Ports, err
}

// addConfigured adds a port as the configuration has it. What cannot be
// understood is left out, and is reported when the container runs.
func (d *decoded) addConfigured(port nat.Port, b nat.PortBinding) {
	inside, err := strconv.ParseUint(port.Port(), 10, 16)
	if err != nil {
		return
	}
	// A range, or no number at all, leaves the choice to the engine.
	outside, err := strconv.ParseUint(b.HostPort, 10, 16)
	if err != nil {
		outside, b.HostIP = 0, ""
	}
	d.addPort(container.Port{IP: b.HostIP, PrivatePort: uint16(inside), PublicPort: uint16(outside), Type: port.Proto()})
}

// takeForeseen takes in the ports of a container that does not run, and reports
// whether that changed the snapshot.
func (s *state) takeForeseen(f foreseen) (changed bool) {
	s.remember(f.id, f.ports)
	c, ok := s.containers[f.id]
	if !ok || !c.Starting || c.Unidentified {
		return false // or it is put in with the answer that identifies it
	}
	c.Foreseen = f.ports
	s.containers[f.id] = c
	return len(f.ports) > 0
}

// remember keeps the ports of a container for its next start.
func (s *state) remember(id string, ports []inventory.Port) {
	if len(ports) > 0 {
		keep(s.foreseen, foreseenMost, id, ports)
	}
}
