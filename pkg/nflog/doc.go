// Package nflog turns a group of NFLOG into the headers of the packets that
// rules sent there. It never decides what is logged, and names nothing.
//
// It is a room of its own because it alone speaks NFLOG, through
// github.com/florianl/go-nflog, and reads headers of packets.
package nflog
