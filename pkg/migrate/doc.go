// Package migrate turns what iptables-save, ipset save and ufw status print
// into a policy file. It never opens what they kept closed: what a policy cannot
// express ends closed, and is left in the file as a comment.
//
// It does not translate rule by rule. It asks the rules, as the kernel would,
// about every kind of packet that they tell apart, and writes down who gets
// through. A rule that might apply and might not leaves what it speaks of
// closed: a packet counts as accepted only when every outcome is.
//
// Be aware: what happens before the filter (address translation, marks, ipvs)
// is not looked at, and rules of nft that iptables-save cannot print are not
// seen. A bridge of Docker's with a name that somebody gave it is known by
// Docker's own rules; where these were not given it counts as a link of the host.
package migrate
