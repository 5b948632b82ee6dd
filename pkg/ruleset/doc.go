// Package ruleset turns typed values that describe one nftables table into nft
// text, and into what the table would do to a packet. It never talks to the
// kernel and knows nothing of containers or policy.
package ruleset
