package doctor

import (
	"errors"
	"io/fs"

	"github.com/nftfw/nftfw/dockerwatch"
	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// Options say where to look.
type Options struct {
	PolicyPath string
	StateDir   string
	Socket     string
	DockerHost string // URL
	NoDocker   bool   // the host has no engine
	Table      string
}

// Facts is what was seen of a host. What could not be looked at has an error in
// its place.
type Facts struct {
	Options Options

	Daemon      *api.Status // nil: DaemonErr says why
	DaemonErr   error
	SocketGroup string // of the control socket's file, "" where not known

	Policy  *policy.Policy // in force, else the file's, else the default
	Sets    policy.Sets    // of the policy and what was added by command, as far as we may read it
	File    PolicyFile
	State   StateDir
	Kernel  Kernel
	Docker  Docker
	Links   []inventory.Link
	LinkErr error

	// Diagnostics are what policy has to say about what runs.
	Diagnostics []policy.Diagnostic

	LegacyTables []string // of iptables-legacy that hold something, such as "filter"
	LegacyUnread []string // of which that is not known
	// BridgeNF4 and BridgeNF6 are set where what a bridge switches is shown to
	// the forward hook (net.bridge.bridge-nf-call-iptables and -ip6tables).
	BridgeNF4, BridgeNF6 bool
	RouteLocalnet        []string // links with net.ipv4.conf.LINK.route_localnet
	IPVS                 []string // virtual services, as the kernel lists them
}

// PolicyFile is the policy file on the disk.
type PolicyFile struct {
	Exists  bool
	Open    []string // that everybody may write to, of the file and its folder
	Err     error    // it cannot be read or has mistakes
	Hash    string
	Applied string // hash of what was last put in force, "" for the default or where not known
	Known   bool   // whether Applied is known
}

// StateDir is the state directory.
type StateDir struct {
	Exists   bool
	Mode     fs.FileMode
	Writable bool
	Err      error
}

// Kernel is what nf_tables says.
type Kernel struct {
	Err       error // it does not speak to us; nothing below is known
	Tables    []nft.ForeignTable
	Refusal   error // what of the table for this policy the kernel would not take
	Conntrack error
}

// Docker is what the engine says.
type Docker struct {
	Err       error
	Group     string // of the socket's file, "" where not known
	Info      dockerwatch.Info
	Inventory inventory.Snapshot // with Links
}

// ErrBlind is what Blind gives when nothing could be seen.
var ErrBlind = errors.New("nothing of this host can be looked at")

// Blind gives an error where f holds nothing to judge.
func (f *Facts) Blind() error {
	if f.Kernel.Err == nil || f.Daemon != nil || f.LinkErr == nil {
		return nil
	}
	return errors.Join(ErrBlind, f.Kernel.Err, f.LinkErr)
}

// listed reports whether the engine has said what runs.
func (f *Facts) listed() bool { return f.Docker.Inventory.Engine == inventory.EngineListed }

// inside is what is known of the links between Docker and the outside.
func (f *Facts) inside() map[string]bool {
	out := map[string]bool{}
	for _, l := range policy.ClassifyLinks(f.Docker.Inventory) {
		if l.Side == policy.Inside {
			out[l.Link.Name] = true
		}
	}
	return out
}
