package inventory

import "net/netip"

// Swarm is what an engine tells of the swarm that this host is a node of. The
// zero Swarm is that of a host in none.
type Swarm struct {
	Role SwarmRole `json:"role,omitempty"`
	// Unknown is set until the engine has told, and then nothing else is.
	Unknown bool `json:"unknown,omitempty"`
	// Problem says in one line why what stands here may be less than there is;
	// "" where it is all that the engine knows.
	Problem string `json:"problem,omitempty"`

	// Nodes are addresses of the other nodes: all of them on a manager, those
	// that the engine happens to know on a worker. Sorted, each once.
	Nodes []netip.Addr `json:"nodes,omitempty"`
	// ControlPort is the TCP port on which this node takes part in managing
	// the swarm, and DataPort the UDP port of its overlay networks; 0 where
	// the engine does not tell.
	ControlPort uint16 `json:"control_port,omitempty"`
	DataPort    uint16 `json:"data_port,omitempty"`

	// Ingress is where the engine sends what arrives at a published port of
	// the routing mesh: that port of this address on the network
	// GatewayNetwork. It is invalid where the node has no routing mesh.
	Ingress netip.Addr `json:"ingress,omitzero"`
	// Services are those that publish ports in the routing mesh, whichever
	// nodes they run on. Only managers know of them.
	Services []Service `json:"services,omitempty"`
}

// SwarmRole is what a node is in its swarm.
type SwarmRole string

// The roles. The empty role is that of a host in no swarm.
const (
	SwarmWorker  SwarmRole = "worker"
	SwarmManager SwarmRole = "manager"
)

// GatewayNetwork is the name of the bridge network over which containers on
// overlay networks, and the routing mesh, reach the host and the outside.
const GatewayNetwork = "docker_gwbridge"

// Service is a service of a swarm that publishes ports in the routing mesh.
type Service struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Image string `json:"image"` // as the operator wrote it, perhaps with a digest behind it

	// Labels are those of the service (deploy.labels in a stack's file), and
	// ContainerLabels those that it gives to its containers (labels). No
	// image has a word in either.
	Labels          map[string]string `json:"labels,omitempty"`
	ContainerLabels map[string]string `json:"container_labels,omitempty"`

	Ports []ServicePort `json:"ports,omitempty"`
}

// ServicePort is a port that a service publishes in the routing mesh: at every
// address of every node.
type ServicePort struct {
	Published uint16 `json:"published"`
	Target    uint16 `json:"target"` // of the containers
	Proto     uint8  `json:"proto"`  // IANA protocol number: 6, 17, 132
}
