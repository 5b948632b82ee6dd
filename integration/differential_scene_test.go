package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/nftfw/nftfw/integration/lab"
)

// changeSets adds entries to sets, or takes them out again.
func (d *differential) changeSets() error {
	if n := len(d.now.runtime); n > 0 && d.chance(50) {
		i := d.IntN(n)
		e := d.now.runtime[i]
		d.now.runtime = without(d.now.runtime, i)
		return d.command("sets", "del", e.set, e.addr, "--exist")
	}
	for range 1 + d.IntN(2) {
		e := entry{pick(d.maker, slices.Concat(setNames, []string{"trusted", "blocked"})), pick(d.maker, addressWords[:len(addressWords)-1])}
		if slices.Contains(d.now.runtime, e) {
			continue
		}
		d.now.runtime = append(slices.Clone(d.now.runtime), e)
		d.touched[e.set] = true
		if err := d.command("sets", "add", e.set, e.addr); err != nil {
			return err
		}
	}
	return nil
}

func (d *differential) command(args ...string) error {
	if o := d.fw.Exec(d.ctx(), args...); o.Status != 0 {
		return errors.New(o.String())
	}
	return nil
}

// disarm takes nftfw's table away, if there is one.
func (d *differential) disarm() error {
	if !d.fw.Running() {
		return nil
	}
	return d.command("down", "--yes")
}

// enforce puts the world's policy and set entries in force.
func (d *differential) enforce() error {
	if err := d.fw.WritePolicy(policyText(d.now.policy)); err != nil {
		return err
	}
	if !d.fw.Running() {
		if err := d.fw.Start(d.ctx()); err != nil {
			return err
		}
	}
	if err := d.command("apply"); err != nil {
		return err
	}
	for name := range d.touched {
		if err := d.command("sets", "flush", name); err != nil {
			return err
		}
	}
	clear(d.touched)
	for _, e := range d.now.runtime {
		d.touched[e.set] = true
		if err := d.command("sets", "add", e.set, e.addr); err != nil {
			return err
		}
	}
	return d.settled()
}

// settled waits until nftfw knows every container by the address that it has.
func (d *differential) settled() error {
	ctx, cancel := context.WithTimeout(d.ctx(), openWithin)
	defer cancel()
	return lab.Poll(ctx, 20*time.Millisecond, func() error {
		status, err := d.fw.Status(ctx)
		if err != nil {
			return err
		}
		if status.Docker.Containers != len(d.now.containers) {
			return fmt.Errorf("nftfw knows %d containers, want %d", status.Docker.Containers, len(d.now.containers))
		}
		var all struct {
			Ports []struct {
				Container   string `json:"container"`
				ContainerIP string `json:"container_ip"`
			} `json:"ports"`
		}
		o := d.fw.Exec(ctx, "ports", "--json")
		if err := json.Unmarshal([]byte(o.Stdout), &all); err != nil {
			return fmt.Errorf("%w: %s", err, o)
		}
		for _, p := range all.Ports {
			a, err := netip.ParseAddr(p.ContainerIP)
			if c := d.running[p.Container]; c == nil || err == nil && !has(c, a) {
				return fmt.Errorf("nftfw takes %s for %s", p.ContainerIP, p.Container)
			}
		}
		return nil
	})
}

func has(c *lab.Container, a netip.Addr) bool {
	for _, addrs := range c.Addrs {
		if slices.Contains(addrs, a) {
			return true
		}
	}
	return false
}

// share reports whether two containers have an address in common.
func share(a, b *lab.Container) bool {
	for _, addrs := range a.Addrs {
		if slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return has(b, addr) }) {
			return true
		}
	}
	return false
}

func (d *differential) names() []string {
	var names []string
	for _, b := range d.now.containers {
		names = append(names, b.name)
	}
	return names
}

// realize makes the containers those of the world: what is right stays.
func (d *differential) realize() error {
	var remove []string
	for name, b := range d.made {
		if !slices.ContainsFunc(d.now.containers, func(w box) bool { return w.String() == b.String() }) {
			remove = append(remove, name)
		}
	}
	if len(remove) > 0 {
		if _, err := d.engine.Docker(d.ctx(), append([]string{"rm", "-f"}, remove...)...); err != nil {
			return err
		}
	}
	for _, name := range remove {
		delete(d.made, name)
	}
	var missing []box
	for _, b := range d.now.containers {
		if _, there := d.made[b.name]; !there {
			missing = append(missing, b)
			d.made[b.name] = b
		}
	}
	errs := make([]error, len(missing))
	d.eachOf(len(missing), len(missing)+1, func(i int) { errs[i] = d.make(missing[i]) })
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.look()
}

// make starts a container and connects it to its further networks.
func (d *differential) make(b box) error {
	args := insidePorts
	if b.onHost() {
		args = onHostPorts
	}
	if _, err := d.engine.Run(d.ctx(), lab.Spec{Name: b.name, Image: b.image, Options: b.options(), Args: args}); err != nil {
		return err
	}
	for _, network := range b.networks[1:] {
		if _, err := d.engine.Docker(d.ctx(), "network", "connect", network, b.name); err != nil {
			return err
		}
	}
	return nil
}

// look asks the engine where the containers are now.
func (d *differential) look() error {
	d.running = map[string]*lab.Container{}
	for _, b := range d.now.containers {
		c, err := d.engine.Container(d.ctx(), b.name)
		if err != nil {
			return err
		}
		d.running[b.name] = c
	}
	return nil
}

// swap stops all containers and starts them in another order, so that they
// take each other's addresses, while the rules are in force.
func (d *differential) swap() error {
	before := d.running
	for range 3 {
		if _, err := d.engine.Docker(d.ctx(), append([]string{"stop", "-t", "0"}, d.names()...)...); err != nil {
			return err
		}
		for _, i := range d.Perm(len(d.now.containers)) {
			if _, err := d.engine.Docker(d.ctx(), "start", d.now.containers[i].name); err != nil {
				return err
			}
		}
		if err := d.look(); err != nil {
			return err
		}
		for _, c := range d.running {
			for name, was := range before {
				if name != c.Name && share(c, was) {
					return d.settled()
				}
			}
		}
	}
	return errors.New("no container has got another's address")
}
