package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// The types below describe the policy file to editors and to people:
// docs/policy.schema.json and docs/policy.md are made from them, and their
// comments are what stands there. The parser does not use them; the tests
// beside them fail where the two do not know the same keys, forms or defaults.

// FilePolicy is a policy file.
type FilePolicy struct {
	// The version of the format, always 1.
	Version int `json:"version" jsonschema:"required,enum=1"`
	// Whether the rules refuse. `observe` refuses and cuts nothing, not even `blocked`: what would be refused is counted.
	Mode Mode `json:"mode" jsonschema:"default=enforce,enum=enforce,enum=observe"`
	// Interfaces of this host.
	Interfaces FileInterfaces `json:"interfaces"`
	// Named sets of addresses. `trusted`, `blocked` and `swarm_nodes` exist always. Names begin with a lower-case letter and hold letters, digits, `-` and `_`, 32 at the most.
	Sets map[string]FileSet `json:"sets"`
	// The host's own ports.
	Host FileHost `json:"host"`
	// Published ports of containers, and where containers may connect.
	Containers FileContainers `json:"containers"`
	// Docker Swarm.
	Swarm FileSwarm `json:"swarm"`
	// Traffic through the host that is not to or from containers, such as that of virtual machines and VPNs.
	Forward FileForward `json:"forward"`
	// What is logged.
	Log FileLog `json:"log"`
	// What becomes of live connections that lose their permission: `cut` ends them, `keep` lets them go on.
	OnRevoke OnRevoke `json:"on_revoke" jsonschema:"default=cut,enum=cut,enum=keep"`
	// Metrics for Prometheus. Without it there are none.
	Metrics FileMetrics `json:"metrics"`
}

// FileInterfaces is the section interfaces.
type FileInterfaces struct {
	// What arrives on these interfaces is accepted, unless its source is in `blocked`. A `*` at the end stands for any rest. The loopback and Docker's bridges are found by themselves; every other interface is closed until something opens it.
	Trusted []FileInterface `json:"trusted"`
}

// FileSetObject is the long form of a set.
type FileSetObject struct {
	// What the set is for.
	Comment string `json:"comment"`
	// The addresses.
	Entries []FileAddress `json:"entries"`
	// Places that further entries come from, followed while nftfw runs. The last good list of each is kept and in force from the start.
	Sources []FileSource `json:"sources"`
}

// FileSource is an item of sources: one of the kinds with its options.
type FileSource struct {
	// A file, or a folder of files, of one entry a line; `#` and `;` begin a comment.
	File string `json:"file" jsonschema:"pattern=^/"`
	// A list behind an http or https URL, of one entry a line unless `json` or `csv` says otherwise.
	URL string `json:"url" jsonschema:"pattern=^https?://[^/]"`
	// How often the URL is asked; 1h unless given.
	Every FileDuration `json:"every"`
	// Where the entries are in a JSON document: keys with dots between them. Lists on the way are gone through by themselves.
	JSON FilePaths `json:"json"`
	// The column of a CSV document that has the entries: its number from 1, or its name in the first line.
	CSV FileColumn `json:"csv"`
	// Whether a list is believed that is less than half as long as the one before; `refuse` unless given.
	Shrink string `json:"shrink" jsonschema:"enum=allow,enum=refuse"`
	// A host name whose addresses are the entries.
	DNS string `json:"dns" jsonschema:"pattern=^[A-Za-z0-9_.-]*[A-Za-z][A-Za-z0-9-]*[.]?$"`
	// The shortest and the longest time for which an answer is believed, whatever its TTL; 30s and 1h unless given.
	MinTTL FileDuration `json:"min_ttl"`
	// See `min_ttl`.
	MaxTTL FileDuration `json:"max_ttl"`
	// For how long an address is kept that is no longer answered; 10m unless given.
	Grace FileDuration `json:"grace"`
	// A prefix in a cluster of etcd: what follows it in a key is an entry, the value its comment, the lease its timeout.
	Etcd FileEtcd `json:"etcd"`
	// The decisions of a CrowdSec local API.
	CrowdSec FileCrowdSec `json:"crowdsec"`
}

// JSONSchemaExtend says that a source is of one kind, with options of its own.
func (FileSource) JSONSchemaExtend(s *jsonschema.Schema) {
	for _, kind := range spec.Kinds() {
		s.OneOf = append(s.OneOf, &jsonschema.Schema{Required: []string{kind}})
	}
	s.Not = &jsonschema.Schema{Required: []string{"json", "csv"}}
	s.DependentRequired = map[string][]string{
		"every": {"url"}, "json": {"url"}, "csv": {"url"}, "shrink": {"url"},
		"min_ttl": {"dns"}, "max_ttl": {"dns"}, "grace": {"dns"},
	}
}

// FileEtcd is a source of kind etcd.
type FileEtcd struct {
	// The URLs of the members.
	Endpoints []string `json:"endpoints" jsonschema:"required,minItems=1"`
	// What the keys begin with, up to a `/`.
	Prefix string `json:"prefix" jsonschema:"required,pattern=^.+/$"`
	// The user to log in as.
	User string `json:"user"`
	// A file that holds the user's password.
	PasswordFile string `json:"password_file" jsonschema:"pattern=^/"`
	// Files of the TLS connection.
	TLS FileTLS `json:"tls"`
}

// JSONSchemaExtend says that a user has a password.
func (FileEtcd) JSONSchemaExtend(s *jsonschema.Schema) {
	s.DependentRequired = map[string][]string{"user": {"password_file"}, "password_file": {"user"}}
}

// FileTLS is tls of etcd.
type FileTLS struct {
	// Certificates of those who may have signed the server's; the system's unless given.
	CA string `json:"ca" jsonschema:"pattern=^/"`
	// The client's own certificate.
	Cert string `json:"cert" jsonschema:"pattern=^/"`
	// The key of `cert`.
	Key string `json:"key" jsonschema:"pattern=^/"`
}

// JSONSchemaExtend says that a certificate has a key.
func (FileTLS) JSONSchemaExtend(s *jsonschema.Schema) {
	s.DependentRequired = map[string][]string{"cert": {"key"}, "key": {"cert"}}
}

// FileCrowdSec is a source of kind crowdsec.
type FileCrowdSec struct {
	// The local API, such as `http://127.0.0.1:8080`.
	URL string `json:"url" jsonschema:"required,pattern=^https?://[^/]"`
	// A file that holds the API key, as `cscli bouncers add` gives it.
	KeyFile string `json:"key_file" jsonschema:"required,pattern=^/"`
	// How often it is asked; 10s unless given.
	Every FileDuration `json:"every"`
}

// FileHost is the section host.
type FileHost struct {
	// What becomes of packets to ports of the host that nothing below opens. `accept` leaves them to another firewall; published ports that come in through docker-proxy follow their FROM.
	Default string `json:"default" jsonschema:"default=drop,enum=drop,enum=accept"`
	// Ports of the host and who may reach them. Sources in `trusted` reach all ports, except those whose FROM is `none`.
	Allow []FileHostAllow `json:"allow"`
	// Whether the host answers ping. ICMP errors, neighbour discovery, router advertisements, MLD, IGMP and answers to DHCP clients are always let through.
	Ping bool `json:"ping" jsonschema:"default=true"`
}

// FileHostAllow is an entry of host.allow.
type FileHostAllow struct {
	// Only for packets that arrive on this interface.
	In FileInterface `json:"in"`
	// The ports, or protocols without ports.
	Ports []FilePort `json:"ports" jsonschema:"required,minItems=1"`
	// Who may connect.
	From FileFrom `json:"from" jsonschema:"required"`
}

// FileContainers is the section containers.
type FileContainers struct {
	// Who may reach a published port that no rule and no label speaks of.
	Default FileFrom `json:"default" jsonschema:"default=trusted"`
	// The most that a label may grant: every set in it must be named here, and every address must lie within addresses written here. More is refused whole.
	Labels FileFrom `json:"labels" jsonschema:"default=any"`
	// Whether labels that are baked into an image count, for `nftfw.*` and in `match`.
	ImageLabels bool `json:"image_labels" jsonschema:"default=false"`
	// The administrator's word, which stands above labels. The first rule that matches the container and mentions the port counts; within a rule a number beats a range, and a range beats `*`.
	Rules []FileRule `json:"rules"`
	// What containers may reach of each other. `docker` leaves it to Docker. Between containers on one bridge the others need br_netfilter.
	ToContainers ToContainers `json:"to_containers" jsonschema:"default=docker,enum=docker,enum=none,enum=same-project"`
	// Which ports of the host containers may reach.
	ToHost FileToHost `json:"to_host" jsonschema:"default=any"`
	// Where containers may connect. It is compared after Docker's address translation, and never covers peers on the same bridge.
	Egress FileEgress `json:"egress" jsonschema:"default=any"`
}

// FileRule is an entry of containers.rules.
type FileRule struct {
	// Which containers the rule is for. Every key that is given must hold.
	Match FileMatch `json:"match" jsonschema:"required"`
	// Ports of the container (not of the host), or `*` for every one, and who may reach them.
	Expose FileExpose `json:"expose"`
	// Where these containers may connect.
	Egress FileEgress `json:"egress"`
}

// JSONSchemaExtend says that a rule says something.
func (FileRule) JSONSchemaExtend(s *jsonschema.Schema) {
	s.AnyOf = []*jsonschema.Schema{{Required: []string{"expose"}}, {Required: []string{"egress"}}}
}

// FileMatch is match of a rule.
type FileMatch struct {
	// The container's name.
	Name FilePattern `json:"name"`
	// Its compose project.
	Project FilePattern `json:"project"`
	// Its compose service.
	Service FilePattern `json:"service"`
	// The image as the container names it.
	Image FilePattern `json:"image"`
	// Labels and patterns that their values must match.
	Label map[string]string `json:"label" jsonschema:"minProperties=1"`
	// Only for connections to this address of the host.
	HostIP string `json:"host_ip" jsonschema:"pattern=^[0-9A-Fa-f:.]+$"`
}

// JSONSchemaExtend says that match is not empty.
func (FileMatch) JSONSchemaExtend(s *jsonschema.Schema) { s.MinProperties = one() }

// FileSwarm is the section swarm.
type FileSwarm struct {
	// Published ports of the routing mesh and who may reach them. A worker opens these and no others; a manager those among them that services publish.
	Ingress FileIngress `json:"ingress"`
}

// FileForward is the section forward.
type FileForward struct {
	// What becomes of packets that nothing below allows.
	Default string `json:"default" jsonschema:"default=accept,enum=drop,enum=accept"`
	// What may pass. Answers always may.
	Allow []FileForwardAllow `json:"allow"`
}

// FileForwardAllow is an entry of forward.allow.
type FileForwardAllow struct {
	// The interface by which the packet arrives; any when left out.
	In FileInterface `json:"in"`
	// The interface by which it leaves; any when left out.
	Out FileInterface `json:"out"`
	// Whose packets.
	From FileFrom `json:"from" jsonschema:"required"`
}

// FileLog is the section log.
type FileLog struct {
	// Whether refused packets are logged.
	Drops bool `json:"drops" jsonschema:"default=true"`
	// How many at the most: a number, `/`, and second, minute, hour or day.
	Rate string `json:"rate" jsonschema:"default=10/second,pattern=^[1-9][0-9]{0\\,6}/(second|minute|hour|day)$"`
}

// FileMetrics is the section metrics.
type FileMetrics struct {
	// The address and port to listen on, such as `127.0.0.1:9469`.
	Listen string `json:"listen" jsonschema:"pattern=^(localhost|[0-9.]*|\\[[0-9A-Fa-f:.]+\\]):[1-9][0-9]{0\\,4}$"`
}

// The forms of values. Each is named in policy.md as Form gives it.
type (
	// FileFrom is a FROM.
	FileFrom string
	// FileEgress is a list of destinations.
	FileEgress string
	// FileToHost is any, none or ports.
	FileToHost string
	// FileSet is a list of addresses or FileSetObject.
	FileSet string
	// FileDuration is a duration.
	FileDuration string
	// FilePaths is a path of keys in a JSON document, or a list of them.
	FilePaths string
	// FileColumn is the name or the number of a column.
	FileColumn string
	// FileAddress is an entry of a set.
	FileAddress string
	// FilePort is an item of a list of ports.
	FilePort string
	// FileInterface is the name of an interface.
	FileInterface string
	// FilePattern is a text with * and ?.
	FilePattern string
	// FileExpose maps ports to FROM.
	FileExpose string
	// FileIngress maps ports of the routing mesh to FROM.
	FileIngress string
)

// Parts of patterns. Addresses are told apart from names of sets, and what is
// wrong inside one is left to `nftfw check`.
const (
	patternAddress = `[0-9A-Fa-f]*[0-9:][0-9A-Fa-f:.]*(/[0-9]{1,3}|-[0-9A-Fa-f:.]+)?`
	patternName    = `[a-z][a-z0-9_-]{0,31}`
	patternNumber  = `([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])`
)

// patternWords matches one of words in any case.
func patternWords(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte('|')
		}
		for _, c := range w {
			if upper := strings.ToUpper(string(c)); upper != string(c) {
				fmt.Fprintf(&b, "[%c%s]", c, upper)
			} else {
				b.WriteRune(c)
			}
		}
	}
	return "(" + b.String() + ")"
}

// patternPort matches PORT[-PORT][/PROTO].
func patternPort(protocols ...string) string {
	return patternNumber + "(-" + patternNumber + ")?(/" + patternWords(protocols) + ")?"
}

func patternAnyPort() string { return patternPort(slices.Sorted(maps.Keys(portProtocols))...) }

func patternHostPort() string {
	portless := patternWords(slices.Sorted(maps.Keys(portlessProtocols)))
	return "^(\\*|" + patternAnyPort() + "|" + portless + "|(0|[1-9][0-9]{0,2})/proto)$"
}

func patternDestination() string {
	port := ":" + patternAnyPort()
	return "(" + patternAddress + "|\\[" + patternAddress + "\\]|" + patternName + "|" +
		"(" + patternAddress + "|\\[" + patternAddress + "\\]|" + patternName + ")?" + port + ")"
}

func one() *uint64 { n := uint64(1); return &n }

func text(pattern string) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", Pattern: pattern}
}

// textOrList is a text with commas, or a list of its items.
func textOrList(item string) *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		text("^\\s*" + item + "(\\s*,\\s*" + item + ")*\\s*$"),
		{Type: "array", MinItems: one(), Items: text("^" + item + "$")},
	}}
}

// portOrNumber is a port as text, or as a number.
func portOrNumber(pattern string) *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		text(pattern), {Type: "integer", Minimum: "1", Maximum: "65535"},
	}}
}

func portsTo(key string, value *jsonschema.Schema) *jsonschema.Schema {
	return &jsonschema.Schema{
		Type: "object", MinProperties: one(),
		PropertyNames: text("^" + key + "$"), AdditionalProperties: value,
	}
}

// JSONSchema gives the form of the type.
func (FileFrom) JSONSchema() *jsonschema.Schema {
	return textOrList("(" + patternAddress + "|" + patternName + ")")
}

// JSONSchema gives the form of the type.
func (FileEgress) JSONSchema() *jsonschema.Schema { return textOrList(patternDestination()) }

// JSONSchema gives the form of the type.
func (FileToHost) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		{Type: "string", Enum: []any{wordAny, wordNone}},
		{Type: "array", MinItems: one(), Items: FilePort("").JSONSchema()},
	}}
}

// JSONSchema gives the form of the type.
func (FileSet) JSONSchema() *jsonschema.Schema {
	entries := &jsonschema.Schema{Type: "array", Items: FileAddress("").JSONSchema()}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{entries, reflectSchema(FileSetObject{})}}
}

// JSONSchema gives the form of the type.
func (FileDuration) JSONSchema() *jsonschema.Schema {
	return text(`^([0-9]{1,4}d|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$`)
}

// JSONSchema gives the form of the type.
func (FilePaths) JSONSchema() *jsonschema.Schema {
	path := text(`^[^][$*.]+(\.[^][$*.]+)*$`)
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		path, {Type: "array", MinItems: one(), Items: path},
	}}
}

// JSONSchema gives the form of the type.
func (FileColumn) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		text(`\S`), {Type: "integer", Minimum: "1", Maximum: "1000"},
	}}
}

// JSONSchema gives the form of the type.
func (FileAddress) JSONSchema() *jsonschema.Schema { return text("^" + patternAddress + "$") }

// JSONSchema gives the form of the type.
func (FilePort) JSONSchema() *jsonschema.Schema { return portOrNumber(patternHostPort()) }

// JSONSchema gives the form of the type. The kernel's names are checked by
// checkInterface; a * alone is refused.
func (FileInterface) JSONSchema() *jsonschema.Schema {
	return text(fmt.Sprintf(`^[^\s*/:"'\\]{1,%d}\*?$`, maxInterface))
}

// JSONSchema gives the form of the type.
func (FilePattern) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{Type: "string", MinLength: one()}
}

// JSONSchema gives the form of the type.
func (FileExpose) JSONSchema() *jsonschema.Schema {
	return portsTo("(\\*|"+patternPort("tcp", "udp", "sctp")+")", FileFrom("").JSONSchema())
}

// JSONSchema gives the form of the type.
func (FileIngress) JSONSchema() *jsonschema.Schema {
	return portsTo(patternPort("tcp", "udp", "sctp"), FileFrom("").JSONSchema())
}
