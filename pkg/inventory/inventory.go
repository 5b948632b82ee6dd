package inventory

import (
	"net/netip"
	"reflect"
	"time"
)

// Snapshot is what one host runs at one moment. It is a value: whoever holds
// one may read it for ever, and nobody writes into one that was handed on.
// The order of its slices carries no meaning.
type Snapshot struct {
	Containers []Container `json:"containers,omitempty"`
	Networks   []Network   `json:"networks,omitempty"`
	Links      []Link      `json:"links,omitempty"`
	Swarm      Swarm       `json:"swarm,omitzero"`

	// Engine says how far the Docker engine's word can be relied on.
	Engine Engine `json:"engine"`
	// Release is the first number of a Docker engine's version; 0 for another engine,
	// or where it does not tell.
	Release int `json:"release,omitempty"`

	// Since is when the oldest of the engine's events came about that this
	// snapshot is the first to take in wholly, by the engine's clock. It is zero
	// where no event led to it.
	Since time.Time `json:"-"`

	// ForeignBridges names bridges that were known not to be the engine's
	// before a restart; they count while Engine is EngineUnknown.
	ForeignBridges []string `json:"foreign_bridges,omitempty"`
	// NewBridges names bridges that appeared lately: each may be a network's that
	// the engine does not list yet.
	NewBridges []string `json:"-"`

	// Asked numbers the last question that Networks answers. It tells a list
	// from an older one and has no meaning beyond that.
	Asked uint64 `json:"-"`
}

// Same reports whether both are one slice of snapshots, which then hold the
// same: nobody writes into them. It looks at no element.
func Same[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// Engine is the state of knowledge about the Docker engine.
type Engine int

const (
	// EngineUnknown means that no complete answer has come yet: a bridge may
	// be Docker's without our knowing.
	EngineUnknown Engine = iota
	// EngineListed means that Containers and Networks rest on a complete
	// list, kept current by events since.
	EngineListed
	// EngineAbsent means that the operator said there is none (--no-docker).
	EngineAbsent
)

// Running counts the containers whose processes run.
func (s Snapshot) Running() int {
	n := 0
	for _, c := range s.Containers {
		if !c.Starting {
			n++
		}
	}
	return n
}

// Container is one container that runs or is being started.
type Container struct {
	ID   string `json:"id"`   // the engine's 64 hexadecimal digits
	Name string `json:"name"` // without the leading slash

	// Image is the image as the operator wrote it, e.g. nginx:1.27, whatever that
	// name stands for by now; "" where it is not known. Both are "" for a container
	// without an image, which Podman has.
	Image   string `json:"image"`
	ImageID string `json:"image_id"` // sha256:…

	// Labels are all labels, the image's among them. ImageLabels are those
	// that the image carries; a key with the same value in both is the
	// image's word, not the operator's.
	Labels      map[string]string `json:"labels,omitempty"`
	ImageLabels map[string]string `json:"image_labels,omitempty"`
	// ImageUnknown is set when the image could not be asked, for example
	// because it was removed: then every label counts as the image's.
	ImageUnknown bool `json:"image_unknown,omitempty"`

	// NetworkMode is the engine's HostConfig.NetworkMode: "host", "none",
	// "bridge", "container:ID", or a network's name.
	NetworkMode string     `json:"network_mode"`
	Endpoints   []Endpoint `json:"endpoints,omitempty"`
	Ports       []Port     `json:"ports,omitempty"`

	// Starting is set from when the engine connects the container to a
	// network until its process runs. Ports is empty so long. An endpoint of it
	// without an address has one that is not known yet.
	Starting bool `json:"starting,omitempty"`
	// Foreseen are the ports that a Starting container will have, where that is
	// known: they are fixed when one is created. Nothing is said of their side on
	// the host, which may be somebody else's still; a port whose number there
	// the engine is yet to choose counts as not published.
	Foreseen []Port `json:"foreseen,omitempty"`
	// Unidentified is set on a Starting container of which the engine has told
	// nothing but its ID and its networks.
	Unidentified bool `json:"unidentified,omitempty"`
}

// Same reports whether c is the same as other, which holds where it was handed on
// from one snapshot to the next. It looks into no slice and no map: what was made
// anew counts as another.
func (c *Container) Same(other *Container) bool {
	return c.ID == other.ID && c.Name == other.Name && c.Image == other.Image && c.ImageID == other.ImageID &&
		sameMap(c.Labels, other.Labels) && sameMap(c.ImageLabels, other.ImageLabels) && c.ImageUnknown == other.ImageUnknown &&
		c.NetworkMode == other.NetworkMode && Same(c.Endpoints, other.Endpoints) && Same(c.Ports, other.Ports) &&
		c.Starting == other.Starting && Same(c.Foreseen, other.Foreseen) && c.Unidentified == other.Unidentified
}

// sameMap is Same for maps.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return len(a) == len(b) && (len(a) == 0 || reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer())
}

// Endpoint is a container's attachment to one network.
type Endpoint struct {
	NetworkID string     `json:"network_id"`
	Addr4     netip.Addr `json:"addr4,omitzero"` // invalid where there is none
	Addr6     netip.Addr `json:"addr6,omitzero"`
}

// Port is one port of a container as the engine lists it.
type Port struct {
	// HostIP is the host address of the binding: 0.0.0.0 and :: are the two
	// wildcards. It is invalid for a port that is exposed but not published.
	HostIP        netip.Addr `json:"host_ip,omitzero"`
	HostPort      uint16     `json:"host_port,omitempty"` // 0 where not published
	ContainerPort uint16     `json:"container_port"`
	Proto         uint8      `json:"proto"` // IANA protocol number: 6, 17, 132
}

// Published reports whether the port has a host side.
func (p Port) Published() bool { return p.HostPort != 0 }

// GatewayMode is how an engine (28 and later) connects a bridge network to the
// outside, per address family.
// See https://docs.docker.com/engine/network/packet-filtering-firewalls/.
type GatewayMode string

// The gateway modes of Docker's bridge driver. The empty mode is nat.
const (
	GatewayNAT            GatewayMode = "nat"
	GatewayNATUnprotected GatewayMode = "nat-unprotected"
	GatewayRouted         GatewayMode = "routed" // also IPv6 where the engine does no NAT for it
	GatewayIsolated       GatewayMode = "isolated"
)

// Network is one Docker network.
type Network struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Driver   string            `json:"driver"` // bridge, host, overlay, macvlan, …
	Bridge   string            `json:"bridge"` // the bridge's link name; "" where the driver has none
	Internal bool              `json:"internal,omitempty"`
	Gateway4 GatewayMode       `json:"gateway4,omitempty"`
	Gateway6 GatewayMode       `json:"gateway6,omitempty"`
	Subnets  []netip.Prefix    `json:"subnets,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`

	// Ingress is set on the overlay network of Swarm's routing mesh.
	Ingress bool `json:"ingress,omitempty"`
	// Encrypted is set on an overlay network whose packets between nodes are
	// encrypted. VNIs are the VXLAN network identifiers of an overlay network.
	Encrypted bool     `json:"encrypted,omitempty"`
	VNIs      []uint32 `json:"vnis,omitempty"`
}

// Link is one network interface of the host's namespace.
type Link struct {
	Index  int    `json:"index"`
	Name   string `json:"name"`
	Kind   string `json:"kind"`             // IFLA_INFO_KIND: bridge, veth, vxlan, …; "" for hardware
	Master int    `json:"master,omitempty"` // index of the bridge it is a port of, 0 for none

	// Sandbox is the namespace that a veth's other end lies in: the path of
	// a container's network namespace, or "" where it leads elsewhere.
	Sandbox string `json:"sandbox,omitempty"`
	// Settling is set on a veth port without a carrier whose other end has
	// not been found in a container: the engine is about to move it into
	// one, or takes it back. Nothing passes it meanwhile.
	Settling bool `json:"settling,omitempty"`
}
