// Package dockerwatch turns what a Docker engine lists and the events it sends
// into inventory snapshots. It never decides whether traffic passes.
package dockerwatch
