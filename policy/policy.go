package policy

import (
	"fmt"
	"net/netip"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// Policy is a checked policy file. Parse and Default are the only ways to
// one, so that everything in it is known to be well formed: every set that a
// From names exists, every port lies in range. It is not changed once made.
type Policy struct {
	Name string // the file's name, used in Pos; "default" for the embedded one
	Mode Mode

	TrustedInterfaces []string // exact names, or a prefix followed by *

	// Sets are the declared sets. "trusted", "blocked" and "swarm_nodes"
	// are always there.
	Sets map[string]NamedSet

	Host       Host
	Containers Containers
	Ingress    []PortGrant // swarm.ingress
	Forward    Forward
	Log        Log
	OnRevoke   OnRevoke
	Metrics    Metrics
}

// Mode says whether the rules refuse or only count.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce"
	Observe Mode = "observe"
)

// OnRevoke says what becomes of live connections that lose their permission.
type OnRevoke string

// The values of on_revoke.
const (
	Cut  OnRevoke = "cut"
	Keep OnRevoke = "keep"
)

// Pos is a place in the policy file. The zero Pos is no place at all.
type Pos struct {
	File   string
	Line   int // from 1
	Column int // from 1
}

// String returns FILE:LINE, or "" for the zero Pos.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Names of the sets that always exist.
const (
	SetTrusted    = "trusted"
	SetBlocked    = "blocked"
	SetSwarmNodes = "swarm_nodes"
)

// NamedSet is one set of the policy file.
type NamedSet struct {
	Comment string
	Entries []addrset.Entry // Source is addrset.Policy, Origin is FILE:LINE
	Sources []SetSource     // where further entries come from; their names differ
	Pos     Pos
}

// SetSource is one item of a set's sources.
type SetSource struct {
	spec.Source
	Pos Pos
}

// From is a FROM of the policy file or of a label: who may connect. Exactly
// one of Any, None or the lists counts; a From with lists always lets the set
// "trusted" in as well, so From{} is FROM trusted.
type From struct {
	Any    bool
	None   bool
	Sets   []string        // sorted, without "trusted", no duplicates
	Ranges []addrset.Range // disjoint, sorted
}

// PortSpec is a port, a range of ports, every port ("*"), or a protocol
// without ports.
type PortSpec struct {
	All      bool   // "*"; then the rest is zero
	Proto    uint8  // IANA protocol number
	Low      uint16 // first port; 0 for a protocol without ports
	High     uint16 // last port, inclusive; equal to Low for one port
	Portless bool   // a whole protocol, e.g. esp or 47/proto
}

// Contains reports whether the port of a protocol is covered.
func (s PortSpec) Contains(proto uint8, port uint16) bool {
	switch {
	case s.All:
		return true
	case s.Portless:
		return s.Proto == proto
	default:
		return s.Proto == proto && s.Low <= port && port <= s.High
	}
}

// Width is the number of ports that s covers: 65536 for "*" and for a whole
// protocol.
func (s PortSpec) Width() int {
	if s.All || s.Portless {
		return 1 << 16
	}
	return int(s.High) - int(s.Low) + 1
}

// PortGrant opens ports to a From.
type PortGrant struct {
	Ports PortSpec
	From  From
	Pos   Pos
}

// Host is the section about the host's own ports.
type Host struct {
	DefaultAccept bool
	Allow         []HostAllow
	Ping          bool
}

// HostAllow is one entry of host.allow.
type HostAllow struct {
	In    string // interface name, a trailing * matches any rest; "" is any
	Ports []PortSpec
	From  From
	Pos   Pos
}

// Containers is the section about containers.
type Containers struct {
	Default      From // for published ports that no rule and no label speaks of
	Labels       From // the most that a label may grant; None: nothing, Any: everything
	LabelTrusted bool // Labels names "trusted"
	ImageLabels  bool
	Rules        []Rule
	ToContainers ToContainers
	ToHost       ToHost
	Egress       Egress
}

// ToContainers says what containers may reach of each other.
type ToContainers string

// The values of containers.to_containers.
const (
	ToContainersDocker      ToContainers = "docker"
	ToContainersNone        ToContainers = "none"
	ToContainersSameProject ToContainers = "same-project"
)

// ToHost says which host ports containers may reach: all of them, or those
// listed (none when empty).
type ToHost struct {
	Any   bool
	Ports []PortSpec
}

// Rule is one entry of containers.rules.
type Rule struct {
	Match  Match
	Expose []PortGrant
	Egress *Egress // nil: the rule does not speak of egress
	Pos    Pos
}

// Match selects containers: all of its parts that are set must hold. Name,
// Project, Service, Image and the label values are patterns in which *
// stands for any run of characters and ? for any one.
type Match struct {
	Name    string
	Project string // label com.docker.compose.project
	Service string // label com.docker.compose.service
	Image   string
	Label   map[string]string
	HostIP  netip.Addr // the host address through which the port is reached
}

// Egress says where containers may connect: anywhere, nowhere (no items), or
// to the listed destinations.
type Egress struct {
	Any   bool
	Items []EgressItem
}

// EgressItem is one destination: any of Set and Range, or neither for "any
// address", with Ports (nil: every port and protocol).
type EgressItem struct {
	Set   string
	Range addrset.Range
	Ports *PortSpec
}

// Forward is the section about traffic through the host that is not to or
// from containers.
type Forward struct {
	DefaultDrop bool
	Allow       []ForwardAllow
}

// ForwardAllow is one entry of forward.allow.
type ForwardAllow struct {
	In, Out string // interface names, a trailing * matches any rest; "" is any
	From    From
	Pos     Pos
}

// Log is the log section.
type Log struct {
	Drops bool
	Rate  uint64 // packets per Unit
	Unit  string // second, minute, hour or day
}

// Metrics is the metrics section.
type Metrics struct {
	Listen string // host:port; "" is off
}

// Severity grades a Diagnostic.
type Severity string

// The severities.
const (
	SeverityWarning Severity = "warning" // worth knowing, nothing is closed by it
	SeverityError   Severity = "error"   // something stays closed because of it
)

// Diagnostic is something that Parse or Compile has to say besides its result.
type Diagnostic struct {
	Severity    Severity
	Pos         Pos    // place in the policy, for those about it
	Container   string // name, for those about a container or a service
	ContainerID string
	Service     bool   // Container is a service of the swarm
	Label       string // label key, for those about a label
	Port        string // container port such as 80/tcp, where it concerns one
	Message     string
}

// String returns the diagnostic as one line without its severity.
func (d Diagnostic) String() string {
	kind := "container"
	if d.Service {
		kind = "service"
	}
	switch {
	case d.Container != "" && d.Label != "":
		return fmt.Sprintf("%s %s: label %s: %s", kind, d.Container, d.Label, d.Message)
	case d.Container != "":
		return fmt.Sprintf("%s %s: %s", kind, d.Container, d.Message)
	case d.Pos.Line != 0:
		return fmt.Sprintf("%s:%d:%d: %s", d.Pos.File, d.Pos.Line, d.Pos.Column, d.Message)
	default:
		return d.Message
	}
}
