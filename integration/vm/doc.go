// Package vm turns Debian's own packages into whole machines on the wire of a
// lab: real boots of real kernels in an emulator, with systemd, a Docker engine
// and sshd, and power that can be cut. It never touches the machine it runs on
// but for files below .cache/vm and what a lab makes.
//
//	clients --veth-- wire --tap-- machine (systemd, dockerd, nftfw) -- docker0 -- containers
//
// Several machines may be on one wire. Each has a disk of its own on top of an
// image that stays as it is. What a test needs on it (nftfw, units, policies)
// are Files, given with each boot. Commands run in it through an agent and not
// over the network, so that rules do not matter to them.
//
// The tests of this package need root, and are skipped unless NFTFW_VM is set:
// `make test-vm` installs what they lack and runs them. NFTFW_BIN names the
// binary to drive; without it one is built.
package vm
