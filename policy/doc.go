// Package policy turns a policy file, container labels, saved sets and an
// inventory into the one nftables table that enforces them. It never reads a
// file, a clock or the kernel, and it never logs: what it has to say comes
// back as values.
package policy
