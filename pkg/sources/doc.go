// Package sources turns places where addresses are kept (files, URLs, names,
// etcd, CrowdSec) into lists of entries, and follows them as they change. It
// never decides about packets, and never gives up a list that was good for one
// that it could not read.
package sources
