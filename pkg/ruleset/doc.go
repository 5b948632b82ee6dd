// Package ruleset describes one nftables table as typed values, writes it as
// nft text, and answers what it would do to a packet. It never talks to the
// kernel and knows nothing of containers or policy.
package ruleset
