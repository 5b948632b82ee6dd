// Package addrset turns entries (address, CIDR or range, with an expiry and a
// comment) into disjoint segments, and does their algebra exactly. It never
// resolves names, reads clocks or touches the kernel: the caller says what
// time it is.
package addrset
