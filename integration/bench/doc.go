// Command bench turns a built nftfw into figures: what it costs packets and
// what it costs its host, each figure beside a yardstick that is measured in
// the same run, round by round in turn. It prints one table, and writes the
// table as JSON and as a plot. It never judges by a single round, and imports
// no package of nftfw but the lab.
//
//	bench [-smoke] [-only REGEXP] [-out DIR]
//
// The binary is the one that $NFTFW_BIN names, else bin/nftfw. It needs root,
// nft, iptables, ipset and a Docker engine, and keeps to network namespaces of
// its own.
//
// Where a figure is about packets, the time that counts is the processor time of
// the one thread that sends them: over veth pairs the kernel works the whole way
// of a packet off in the sender's system call, host and container included. So
// what else the machine does at the time hardly shows.
package main
