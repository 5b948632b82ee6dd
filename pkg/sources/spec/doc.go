// Package spec turns what a policy says of the places where a set's entries
// are kept into plain values. It never reads any of them.
package spec
