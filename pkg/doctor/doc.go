// Package doctor turns what is seen of a host into findings: what weakens or
// breaks the firewall there, each with its remedy. It never changes anything.
//
// Look gathers Facts, and Examine, which is pure, judges them.
//
// Be aware: rules of others are outlined, not simulated. A rule that drops is
// named wherever traffic that nftfw accepts could meet it, also when no packet
// ever will. Rules of iptables-legacy are not read; that there are some is a
// finding of its own.
package doctor
