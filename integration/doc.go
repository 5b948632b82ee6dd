// Package integration turns the built nftfw binary, a Docker engine and a lab
// of network namespaces into packets, and compares what gets through with what
// was promised. It never imports another package of nftfw than the lab.
//
// NFTFW_BIN names the binary to drive; without it one is built. The tests need
// root, and are skipped without; where they are root and find no Docker engine
// they are skipped too, or fail if CI is set.
package integration
