package api

import "time"

// Status is the answer of `nftfw status --json`.
type Status struct {
	Enforced   bool                 `json:"enforced"`
	Down       bool                 `json:"down"` // since `nftfw down`: until `nftfw apply`, or a start of the daemon
	Mode       string               `json:"mode"`
	Table      string               `json:"table"`
	Policy     PolicyStatus         `json:"policy"`
	Docker     DockerStatus         `json:"docker"`
	Swarm      *SwarmStatus         `json:"swarm,omitempty"` // of a node of one
	Restores   int                  `json:"restores"`
	Restored   *Restore             `json:"last_restore,omitempty"`
	Sets       map[string]SetStatus `json:"sets"`
	Sources    []SourceStatus       `json:"sources"`
	LastChange *time.Time           `json:"last_change,omitempty"`
	Daemon     DaemonStatus         `json:"daemon"`
	Problems   []Problem            `json:"problems"`
}

// PolicyStatus says which policy is in force and where it came from.
type PolicyStatus struct {
	Path   string `json:"path"`
	Hash   string `json:"hash"`   // sha256 of the file, hexadecimal; "" for the embedded default
	Source string `json:"source"` // file, last-good or default
	Error  string `json:"error"`  // why the file is not in force; "" when it is
	// ConfirmBy is until when the policy in force waits for `nftfw confirm`.
	ConfirmBy *time.Time `json:"confirm_by,omitempty"`
}

// DockerStatus says how things stand with the engine.
type DockerStatus struct {
	Connected  bool   `json:"connected"`
	Version    string `json:"version"`
	Containers int    `json:"containers"`
	Error      string `json:"error,omitempty"`
	Absent     bool   `json:"absent,omitempty"` // the daemon runs with --no-docker, and asks for none
}

// SwarmStatus says what is known of the swarm that the host is a node of.
type SwarmStatus struct {
	Role     string   `json:"role"`              // worker or manager
	Nodes    []string `json:"nodes"`             // addresses of the other nodes that the engine knows
	Ingress  string   `json:"ingress,omitempty"` // the address of the routing mesh on this host
	Services int      `json:"services"`          // that a manager knows of
	Problem  string   `json:"problem,omitempty"` // why there may be more
}

// DaemonStatus says whether a daemon answered, and which.
type DaemonStatus struct {
	Running bool   `json:"running"`
	PID     int    `json:"pid,omitempty"`
	Version string `json:"version,omitempty"`
}

// Restore is one time that the table had to be put right.
type Restore struct {
	At      time.Time `json:"at"`
	Process string    `json:"process"`
	PID     uint32    `json:"pid"`
}

// SetStatus is one set in Status.
type SetStatus struct {
	Entries int `json:"entries"`
}

// SourceStatus says how things stand with one source of a set.
type SourceStatus struct {
	Set      string     `json:"set"`
	Source   string     `json:"source"` // as its entries name it: url:https://…
	Kind     string     `json:"kind"`   // file, url, dns, etcd or crowdsec
	Entries  int        `json:"entries"`
	LastGood *time.Time `json:"last_good"`   // when it was last read well; null: never
	Age      *int64     `json:"age_seconds"` // since then
	Error    string     `json:"error"`       // why it could not be read since; "" when it could
	Warning  string     `json:"warning"`     // what of it was passed over; "" for nothing
}

// Problem is something that stays closed or does not count, and why.
type Problem struct {
	Severity  string `json:"severity"` // warning or error
	Container string `json:"container,omitempty"`
	Label     string `json:"label,omitempty"`
	Port      string `json:"port,omitempty"`
	Message   string `json:"message"` // the whole line, names included
}

// Sets is the answer of `nftfw sets list --json`.
type Sets struct {
	Sets []SetSummary `json:"sets"`
}

// SetSummary is one line of `nftfw sets list`.
type SetSummary struct {
	Name    string `json:"name"`
	Comment string `json:"comment"`
	Entries int    `json:"entries"`
	Policy  int    `json:"policy"`  // entries written in the policy file
	Runtime int    `json:"runtime"` // entries added by command
	Sources int    `json:"sources"` // entries from the set's sources
}

// Set is the answer of `nftfw sets show NAME --json`.
type Set struct {
	Name    string  `json:"name"`
	Comment string  `json:"comment"`
	Entries []Entry `json:"entries"`
}

// Entry is one entry of a set.
type Entry struct {
	Entry     string     `json:"entry"`
	Source    string     `json:"source"` // policy, runtime, or a source such as url:https://…
	ExpiresAt *time.Time `json:"expires_at"`
	Comment   string     `json:"comment"`
	Origin    string     `json:"origin,omitempty"` // FILE:LINE for entries of the policy, the file for those of file sources
}

// Membership is the answer of `nftfw sets test NAME ADDR --json`.
type Membership struct {
	Name    string  `json:"name"`
	Address string  `json:"address"`
	In      bool    `json:"in"`
	Entries []Entry `json:"entries"` // those that cover it
}

// Ports is the answer of `nftfw ports --json`.
type Ports struct {
	Mode string `json:"mode"`
	// Enforced is false before the first apply, after `nftfw down` and in observe
	// mode: then the list says what would be open and closed.
	Enforced bool      `json:"enforced"`
	Down     bool      `json:"down"` // as in Status
	Ports    []Port    `json:"ports"`
	Problems []Problem `json:"problems"`
	// Refused counts packets by the reason for which they were refused, or in
	// observe mode would have been. Empty where nothing is in force.
	Refused map[string]uint64 `json:"refused"`
	// Observed, in observe mode, are those who would have been refused.
	Observed []Observed `json:"observed"`
}

// Observed is one who would have been refused something, in observe mode.
type Observed struct {
	Source     string `json:"source"`
	SourceName string `json:"source_container,omitempty"` // whose address it is
	Container  string `json:"container"`                  // "" for the host itself
	To         string `json:"to"`                         // address, after DNAT
	Port       uint16 `json:"port"`
	Proto      string `json:"proto"`
	Refused    uint64 `json:"refused"` // packets
}

// Port is one published port.
type Port struct {
	Container     string   `json:"container"`
	ContainerID   string   `json:"container_id"`
	HostIP        string   `json:"host_ip"`
	HostPort      uint16   `json:"host_port"`
	ContainerIP   string   `json:"container_ip"`
	ContainerPort uint16   `json:"container_port"`
	Proto         string   `json:"proto"`
	From          []string `json:"from"`
	DecidedBy     string   `json:"decided_by"` // label, rule or default
	Origin        string   `json:"origin"`     // the policy line or label key
	Error         string   `json:"error"`
	Project       string   `json:"project,omitempty"` // of compose, or the swarm's stack
	Service       string   `json:"service,omitempty"`
	// Ingress is set for a port of a swarm's routing mesh. Container is the
	// service then, or "ingress" on a worker, and ContainerIP the mesh's own.
	Ingress bool `json:"ingress,omitempty"`
	// Accepted and Refused count new connections since the port got its FROM;
	// null where nothing is counted. Ports of the host that lead to one port of
	// a container share their count.
	Accepted *uint64 `json:"accepted"`
	Refused  *uint64 `json:"refused"`
}

// Source asks what one source reaches.
type Source struct {
	From string `json:"from"`
}

// Reach is the answer of `nftfw ports --open-to ADDR --json`.
type Reach struct {
	From string `json:"from"`
	In   string `json:"in"` // the link by which its packets come; "" where there is no route back
	Mode string `json:"mode"`
	// Down is set when the daemon enforces nothing since `nftfw down`.
	Down bool `json:"down"`
	// Ports are the published ports that it reaches, each at every address of
	// the host in its family.
	Ports []Reached `json:"ports"`
	// Host are the host's own ports that it reaches, as host.allow lists them;
	// "*" are all that nothing else speaks of. Something has to listen there.
	Host []ReachedHost `json:"host"`
}

// Reached is a published port that a source reaches.
type Reached struct {
	Container     string `json:"container"`
	Address       string `json:"address"` // of the host, or the container's own where packets are routed to it
	Port          uint16 `json:"port"`
	ContainerPort uint16 `json:"container_port"`
	Proto         string `json:"proto"`
	DecidedBy     string `json:"decided_by"`
}

// ReachedHost are ports of the host that a source reaches.
type ReachedHost struct {
	Ports     string `json:"ports"`
	DecidedBy string `json:"decided_by"`
}

// Change says what a changing command did.
type Change struct {
	Changed  bool     `json:"changed"`
	Entries  int      `json:"entries,omitempty"` // entries added, renewed or removed
	Warnings []string `json:"warnings,omitempty"`

	// Of a dry run: what would change in the kernel, as +/- lines, the same with
	// what is behind each, and what that means for published ports. Else nil.
	Lines []string     `json:"lines,omitzero"`
	Plan  []PlanLine   `json:"plan,omitzero"`
	Ports []PortChange `json:"ports,omitzero"`
	Mode  string       `json:"mode,omitempty"` // of the policy
}

// PlanLine is one of Change.Lines.
type PlanLine struct {
	Line      string `json:"line"`
	Origin    string `json:"origin,omitempty"`    // the policy line or label that asks for it
	Container string `json:"container,omitempty"` // whose element it is
}

// PortChange is a published port whose FROM a policy changes.
type PortChange struct {
	Port
	Before []string `json:"before"` // its FROM now: any where nothing is enforced
}

// SetChange asks for entries to be added to or removed from a set: all of
// them or none.
type SetChange struct {
	Entries []string `json:"entries"`
	// Timeout ends added entries; 0 is never. Nanoseconds.
	Timeout time.Duration `json:"timeout,omitempty"`
	Comment string        `json:"comment,omitempty"`
	// Exist lets a removal pass over entries that are not there.
	Exist bool `json:"exist,omitempty"`
	// Force changes even what would cut an SSH connection of the host.
	Force bool `json:"force,omitempty"`
}

// Apply asks for a policy to be put in force.
type Apply struct {
	Path   string `json:"path"`
	Source []byte `json:"source"`  // nil: there is no file, the embedded default
	DryRun bool   `json:"dry_run"` // only say what would change
	// Confirm puts the former policy back after this time unless Confirm is
	// called; 0 is never. Nanoseconds.
	Confirm time.Duration `json:"confirm,omitempty"`
	// Force changes even what would cut an SSH connection of the host.
	Force bool `json:"force,omitempty"`
}

// Reload asks for the policy file to be read again.
type Reload struct {
	Force bool `json:"force,omitempty"`
}

// Flush asks for a set to be emptied.
type Flush struct {
	Force bool `json:"force,omitempty"`
}

// Question asks what becomes of a packet.
type Question struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Port  uint16 `json:"port,omitempty"`
	Proto uint8  `json:"proto"` // IANA protocol number
	In    string `json:"in,omitempty"`
}

// Explanation is the answer of `nftfw explain --json`.
type Explanation struct {
	Verdict string `json:"verdict"` // accept or drop
	// Of a packet that is let through in observe mode alone: drop.
	Enforced  string `json:"if_enforced,omitempty"`
	Container string `json:"container"`
	DecidedBy string `json:"decided_by"`
	Steps     []Step `json:"steps"`
	Remedy    string `json:"remedy,omitempty"` // a command that would open it
}

// Step is one station of a packet.
type Step struct {
	Where  string `json:"where"`
	What   string `json:"what"`
	Result string `json:"result"`
}
