package spec

import (
	"net/url"
	"time"
)

// Source is one place where entries of a set are kept. Exactly one of its
// parts is set.
type Source struct {
	File     *File
	URL      *URL
	DNS      *DNS
	Etcd     *Etcd
	CrowdSec *CrowdSec
}

// File is a file, or a folder of files, of one entry a line.
type File struct {
	Path string // absolute
}

// URL is a list behind an http or https URL. Without JSON and Column it has
// one entry a line.
type URL struct {
	URL    string
	Every  time.Duration
	JSON   []string // ways to the entries of a JSON document: keys with dots between them
	Column string   // of a CSV document: its name in the first line, or its number from 1
	Shrink bool     // a list less than half as long as the one before is believed
}

// DNS is a host name whose addresses are the entries.
type DNS struct {
	Name           string // without a final dot
	MinTTL, MaxTTL time.Duration
	Grace          time.Duration // for which an address is kept that is no longer answered
}

// Etcd is a prefix in a cluster of etcd. What follows it in a key is an entry,
// the value is its comment, and a lease its timeout.
type Etcd struct {
	Endpoints    []string // URLs
	Prefix       string
	User         string // "" for none
	PasswordFile string
	TLS          TLS
}

// TLS names the files of a TLS connection, each "" for the default.
type TLS struct {
	CA   string // who signed the server's certificate; the system's, if ""
	Cert string // the client's own certificate, with Key
	Key  string
}

// CrowdSec is the decision stream of a CrowdSec local API.
type CrowdSec struct {
	URL     string
	KeyFile string // holds the API key of a bouncer
	Every   time.Duration
}

// The kinds of sources, as the policy spells them.
const (
	KindFile     = "file"
	KindURL      = "url"
	KindDNS      = "dns"
	KindEtcd     = "etcd"
	KindCrowdSec = "crowdsec"
)

// Kinds lists the kinds of sources.
func Kinds() []string { return []string{KindFile, KindURL, KindDNS, KindEtcd, KindCrowdSec} }

// Kind is the kind of s, "" for the zero Source.
func (s Source) Kind() string {
	kind, _ := s.place()
	return kind
}

// Name is the kind of s and where it is, such as "file:/etc/blocked". It tells
// the sources of one set apart, and is what an entry from s has as its source.
// It holds no password.
func (s Source) Name() string {
	kind, place := s.place()
	return kind + ":" + place
}

func (s Source) place() (kind, place string) {
	switch {
	case s.File != nil:
		return KindFile, s.File.Path
	case s.URL != nil:
		return KindURL, redacted(s.URL.URL)
	case s.DNS != nil:
		return KindDNS, s.DNS.Name
	case s.Etcd != nil:
		return KindEtcd, s.Etcd.Prefix
	case s.CrowdSec != nil:
		return KindCrowdSec, redacted(s.CrowdSec.URL)
	}
	return "", ""
}

// redacted is a URL without its password.
func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "?" // policy lets none through
	}
	return u.Redacted()
}
