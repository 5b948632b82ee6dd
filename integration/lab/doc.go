// Package lab turns a description of hosts, clients and Docker engines into
// network namespaces with real engines and real packets in them. It never
// touches the network namespace in which it runs, and it imports no package of
// nftfw: it drives the built binary.
//
// A Lab is one wire: a bridge in a namespace of its own, to which one Docker
// host and any number of clients are attached.
//
//	clients --veth-- wire --veth-- host (dockerd, nftfw) -- docker0, br-… -- containers
//
// Everything needs root. What a Lab makes bears the process's id in its name,
// so that test binaries run side by side, and what a killed process left
// behind is removed by the next New.
package lab
