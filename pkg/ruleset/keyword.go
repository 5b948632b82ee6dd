package ruleset

// IsKeyword tells whether nft cannot read name as the name of a table, chain
// or set. The words are those that nft 1.0.6 stumbled over when each was
// tried as all three, and those that later releases added.
func IsKeyword(name string) bool {
	switch name {
	case "accept", "add", "ah", "all", "and", "arp", "auto-merge", "bridge", "cgroup", "chain",
		"chains", "comment", "comp", "constant", "continue", "counter", "counters", "cpu", "create",
		"ct", "day", "dccp", "define", "delete", "describe", "destroy", "device", "devices", "dnat",
		"drop", "dst", "dup", "dynamic", "ecn", "element", "elements", "eq", "esp", "ether", "exists",
		"expires", "export", "exthdr", "fib", "flags", "flow", "flowtable", "flowtables", "flush",
		"frag", "fwd", "gc-interval", "ge", "geneve", "get", "goto", "gre", "gretap", "gt", "handle",
		"hbh", "hook", "hour", "ibriport", "ibrname", "icmp", "icmpv6", "igmp", "iif", "iifgroup",
		"iifname", "iiftype", "import", "include", "index", "inet", "insert", "interval", "ip", "ip6",
		"ipsec", "jhash", "jump", "last", "le", "limit", "limits", "list", "ll", "log", "lshift", "lt",
		"map", "maps", "mark", "masquerade", "meta", "meter", "meters", "mh", "missing", "monitor",
		"ne", "netdev", "nftrace", "nh", "not", "notrack", "numgen", "obriport", "obrname", "offload",
		"oif", "oifgroup", "oifname", "oiftype", "or", "osf", "pkttype", "policy", "position",
		"priority", "queue", "quota", "quotas", "random", "redefine", "redirect", "reject", "rename",
		"replace", "reset", "return", "rshift", "rt", "rt0", "rt2", "rtclassid", "rule", "ruleset",
		"sctp", "secmark", "secmarks", "set", "sets", "size", "skgid", "skuid", "snat", "socket",
		"srh", "symhash", "synproxy", "synproxys", "table", "tables", "tcp", "th", "time", "timeout",
		"tproxy", "type", "typeof", "udp", "udplite", "undefine", "update", "vlan", "vmap", "vxlan",
		"xor", "xt":
		return true
	}
	return false
}
