// Package inventory describes what runs on a host as plain values: containers,
// networks, published ports and links. It never talks to an engine or the
// kernel, and decides nothing.
package inventory
