package policy

import (
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// What a source does unless the policy says otherwise.
const (
	defaultURLEvery      = time.Hour
	defaultCrowdSecEvery = 10 * time.Second // as CrowdSec's own bouncers do
	defaultMinTTL        = 30 * time.Second
	defaultMaxTTL        = time.Hour
	defaultGrace         = 10 * time.Minute
)

const (
	// minInterval is the shortest time between two questions to a source.
	minInterval = time.Second
	// maxInterval keeps sums of durations far from overflowing.
	maxInterval = 366 * 24 * time.Hour
)

// anySource has the keys of all kinds of sources.
func anySource() schema {
	s := schema{}
	for _, key := range append(spec.Kinds(), "every", "json", "csv", "shrink", "min_ttl", "max_ttl", "grace") {
		s[key] = func(*yaml.Node) {}
	}
	return s
}

const sourceForms = "a place that entries come from, such as {file: /etc/nftfw/blocked.list} or {url: \"https://example.net/list\", every: 1h}"

// sources reads the list of places that entries of a set come from.
func (r *reader) sources(n *yaml.Node) []SetSource {
	var out []SetSource
	lines := map[string]int{}
	r.list(n, "a list of sources", func(item *yaml.Node) {
		s, ok := r.source(item)
		if !ok {
			return
		}
		if line, twice := lines[s.Name()]; twice {
			r.fail(item, "the source %s is in the set twice, first on line %d: keep one of them", s.Name(), line)
			return
		}
		lines[s.Name()] = item.Line
		out = append(out, SetSource{Source: s, Pos: r.pos(item)})
	})
	return out
}

// source reads one source. ok reports whether it can be used.
func (r *reader) source(n *yaml.Node) (s spec.Source, ok bool) {
	before := len(r.errs)
	pairs, ok := r.pairs(n, sourceForms)
	if !ok {
		return s, false
	}
	var given []pair
	for _, p := range pairs {
		if slices.Contains(spec.Kinds(), p.name) {
			given = append(given, p)
		}
	}
	kinds := strings.Join(spec.Kinds(), ", ")
	switch {
	case len(given) == 0 && len(pairs) > 0:
		r.fields(pairs, "a source", anySource())
		if len(r.errs) == before {
			r.fail(pairs[0].key, "%s alone is no source: name one of %s", pairs[0].name, kinds)
		}
		return s, false
	case len(given) == 0:
		r.fail(n, "the source is empty: name one of %s", kinds)
		return s, false
	case len(given) > 1:
		r.fail(given[1].key, "%s beside %s: a source is one of %s, so make two items of them", given[1].name, given[0].name, kinds)
		return s, false
	}
	switch given[0].name {
	case spec.KindFile:
		s.File = r.fileSource(pairs)
	case spec.KindURL:
		s.URL = r.urlSource(pairs)
	case spec.KindDNS:
		s.DNS = r.dnsSource(pairs)
	case spec.KindEtcd:
		r.fields(pairs, "a source", schema{spec.KindEtcd: func(n *yaml.Node) { s.Etcd = r.etcdSource(n) }})
	case spec.KindCrowdSec:
		r.fields(pairs, "a source", schema{spec.KindCrowdSec: func(n *yaml.Node) { s.CrowdSec = r.crowdsecSource(n) }})
	}
	return s, len(r.errs) == before
}

func (r *reader) fileSource(pairs []pair) *spec.File {
	s := &spec.File{}
	r.fields(pairs, "a source of kind file", schema{"file": func(n *yaml.Node) { r.path(n, &s.Path) }})
	return s
}

func (r *reader) urlSource(pairs []pair) *spec.URL {
	s := &spec.URL{Every: defaultURLEvery}
	var csv *yaml.Node
	r.fields(pairs, "a source of kind url", schema{
		"url":    func(n *yaml.Node) { r.httpURL(n, &s.URL, "whoever is on the way can change the list") },
		"every":  func(n *yaml.Node) { r.duration(n, &s.Every, minInterval) },
		"json":   func(n *yaml.Node) { s.JSON = r.jsonPaths(n) },
		"csv":    func(n *yaml.Node) { csv = n; r.column(n, &s.Column) },
		"shrink": func(n *yaml.Node) { r.shrink(n, &s.Shrink) },
	})
	if s.JSON != nil && s.Column != "" {
		r.fail(r.resolve(csv), "csv beside json: a document is one of them")
	}
	return s
}

func (r *reader) shrink(n *yaml.Node, into *bool) {
	var word string
	choose(r, n, &word, "allow", "refuse")
	*into = word == "allow"
}

// jsonPaths reads keys with dots between them, or a list of such.
func (r *reader) jsonPaths(n *yaml.Node) []string {
	var out []string
	each := func(item *yaml.Node) {
		s, ok := r.text(item, "keys with dots between them, such as prefixes.ip_prefix")
		switch {
		case !ok:
		case slices.Contains(strings.Split(s, "."), "") || strings.ContainsAny(s, "[]$*"):
			r.fail(item, "%s is no path: write keys with dots between them, such as prefixes.ip_prefix; lists on the way are gone through by themselves", quote(s))
		default:
			out = append(out, s)
		}
	}
	n = r.resolve(n)
	switch {
	case n.Kind != yaml.SequenceNode:
		each(n)
	case len(n.Content) == 0:
		r.fail(n, "the list is empty: name at least one path")
	default:
		r.list(n, "a list of paths", each)
	}
	return out
}

// column reads the name of a column, or its number.
func (r *reader) column(n *yaml.Node, into *string) {
	n = r.resolve(n)
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!int" {
		if i, err := strconv.Atoi(n.Value); err != nil || i < 1 || i > 1000 {
			r.fail(n, "column %s is no number from 1 to 1000", quote(n.Value))
			return
		}
		*into = n.Value
		return
	}
	const want = "the number of a column, from 1, or its name in the first line"
	if s, ok := r.text(n, want); ok {
		if s = strings.TrimSpace(s); s == "" {
			r.wrongType(n, want)
			return
		}
		*into = s
	}
}

func (r *reader) dnsSource(pairs []pair) *spec.DNS {
	s := &spec.DNS{MinTTL: defaultMinTTL, MaxTTL: defaultMaxTTL, Grace: defaultGrace}
	var least *yaml.Node
	r.fields(pairs, "a source of kind dns", schema{
		"dns":     func(n *yaml.Node) { r.hostName(n, &s.Name) },
		"min_ttl": func(n *yaml.Node) { least = n; r.duration(n, &s.MinTTL, minInterval) },
		"max_ttl": func(n *yaml.Node) { least = n; r.duration(n, &s.MaxTTL, minInterval) },
		"grace":   func(n *yaml.Node) { r.duration(n, &s.Grace, 0) },
	})
	if s.MinTTL > s.MaxTTL {
		r.fail(r.resolve(least), "min_ttl (%s) is longer than max_ttl (%s)", s.MinTTL, s.MaxTTL)
	}
	return s
}

// hostNames has labels of letters, digits, - and _, the last with a letter,
// so that no address is one. See RFC 1123, 2.1, and for _ RFC 8552.
var hostNames = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9-]*[a-z][a-z0-9-]*$`)
})

func (r *reader) hostName(n *yaml.Node, into *string) {
	s, ok := r.text(n, "a host name")
	if !ok {
		return
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if len(name) > 253 || !hostNames().MatchString(name) {
		r.fail(r.resolve(n), "%s is no host name: write one such as home.example.net, and addresses under entries", quote(s))
		return
	}
	*into = name
}

func (r *reader) etcdSource(n *yaml.Node) *spec.Etcd {
	s := &spec.Etcd{}
	n = r.resolve(n)
	given, ok := r.object(n, "etcd", "endpoints, prefix and how to log in", schema{
		"endpoints":     func(n *yaml.Node) { s.Endpoints = r.endpoints(n) },
		"prefix":        func(n *yaml.Node) { r.prefix(n, &s.Prefix) },
		"user":          func(n *yaml.Node) { s.User, _ = r.text(n, "the name of a user") },
		"password_file": func(n *yaml.Node) { r.path(n, &s.PasswordFile) },
		"tls":           func(n *yaml.Node) { s.TLS = r.tls(n) },
	})
	if !ok {
		return s
	}
	r.require(n, given, "etcd", "endpoints", "prefix")
	if given["user"] != given["password_file"] {
		r.fail(n, "user and password_file go together: give both or none")
	}
	return s
}

// require reports the keys that a mapping lacks.
func (r *reader) require(n *yaml.Node, given map[string]bool, where string, keys ...string) {
	for _, key := range keys {
		if !given[key] {
			r.fail(n, "%s is missing in %s", key, where)
		}
	}
}

// endpoints reads the URLs of a cluster.
func (r *reader) endpoints(n *yaml.Node) []string {
	n = r.resolve(n)
	var out []string
	r.list(n, "a list of URLs such as https://192.0.2.5:2379", func(item *yaml.Node) {
		var text string
		if !r.httpURL(item, &text, "whoever is on the way can change the set") {
			return
		}
		if u, err := url.Parse(text); err == nil && (u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil) {
			r.fail(item, "%s is more than a scheme, a host and a port", quote(text))
			return
		}
		out = append(out, strings.TrimSuffix(text, "/"))
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.fail(n, "the list is empty: name at least one endpoint")
	}
	return out
}

func (r *reader) prefix(n *yaml.Node, into *string) {
	s, ok := r.text(n, "the beginning of keys, such as /nftfw/sets/trusted/")
	switch {
	case !ok:
	case len(s) < 2 || !strings.HasSuffix(s, "/"):
		// Without the slash /a would take in what is under /ab as well.
		r.fail(r.resolve(n), "prefix %s does not end with /: write one such as /nftfw/sets/trusted/", quote(s))
	default:
		*into = s
	}
}

func (r *reader) tls(n *yaml.Node) spec.TLS {
	var s spec.TLS
	n = r.resolve(n)
	given, ok := r.object(n, "tls", "ca, cert and key, each a file", schema{
		"ca":   func(n *yaml.Node) { r.path(n, &s.CA) },
		"cert": func(n *yaml.Node) { r.path(n, &s.Cert) },
		"key":  func(n *yaml.Node) { r.path(n, &s.Key) },
	})
	if ok && given["cert"] != given["key"] {
		r.fail(n, "cert and key go together: give both or none")
	}
	return s
}

func (r *reader) crowdsecSource(n *yaml.Node) *spec.CrowdSec {
	s := &spec.CrowdSec{Every: defaultCrowdSecEvery}
	n = r.resolve(n)
	given, ok := r.object(n, "crowdsec", "url and key_file", schema{
		"url":      func(n *yaml.Node) { r.httpURL(n, &s.URL, "whoever is on the way can read the key and change the set") },
		"key_file": func(n *yaml.Node) { r.path(n, &s.KeyFile) },
		"every":    func(n *yaml.Node) { r.duration(n, &s.Every, minInterval) },
	})
	if ok {
		r.require(n, given, "crowdsec", "url", "key_file")
	}
	s.URL = strings.TrimSuffix(s.URL, "/")
	return s
}

// path reads the absolute path of a file or folder.
func (r *reader) path(n *yaml.Node, into *string) {
	s, ok := r.text(n, "the path of a file")
	switch {
	case !ok:
	case !filepath.IsAbs(s):
		r.fail(r.resolve(n), "%s is no absolute path: begin it with /", quote(s))
	default:
		*into = filepath.Clean(s)
	}
}

// httpURL reads an http or https URL. Plain http to another host gets a
// warning that says what may happen.
func (r *reader) httpURL(n *yaml.Node, into *string, danger string) bool {
	s, ok := r.text(n, "a URL")
	if !ok {
		return false
	}
	n = r.resolve(n)
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https":
		r.fail(n, "%s is no URL: write one that begins with https:// or http://", quote(s))
		return false
	case u.Hostname() == "":
		r.fail(n, "%s names no host", quote(s))
		return false
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		r.warn(n, "%s is not encrypted: %s; use https", u.Redacted(), danger)
	}
	*into = s
	return true
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback() || host == "localhost"
}

// days is what Go's durations lack.
var days = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([0-9]{1,4})d$`) })

// duration reads a duration of at least least.
func (r *reader) duration(n *yaml.Node, into *time.Duration, least time.Duration) {
	s, ok := r.text(n, "a duration such as 30s, 15m, 1h or 7d")
	if !ok {
		return
	}
	n = r.resolve(n)
	d, err := time.ParseDuration(s)
	if m := days().FindStringSubmatch(s); m != nil {
		count, _ := strconv.Atoi(m[1]) // four digits at most
		d, err = time.Duration(count)*24*time.Hour, nil
	}
	switch {
	case err != nil:
		r.fail(n, "%s is no duration: write it as 30s, 15m, 1h or 7d", quote(s))
	case d < least:
		r.fail(n, "%s is too short: %s is the least", quote(s), least)
	case d > maxInterval:
		r.fail(n, "%s is too long: %s is the most", quote(s), maxInterval)
	default:
		*into = d
	}
}
