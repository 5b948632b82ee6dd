// Command demo turns a Debian machine with Docker installed into a short show
// of nftfw at work: a real engine and nftfw in a network namespace of their
// own, three neighbours, and at each step who of them can connect to what. It
// never touches the network namespace in which it runs, and what it prints as
// open, closed or milliseconds it has measured.
//
// It exits 0 when every measurement was as it must be, 1 when one was not or
// the show could not go on, and cleans up either way, also when interrupted.
// The environment variable NFTFW_BIN names the binary that it shows.
package main
