package main

// Hooks of the table.
const (
	prerouting = "prerouting"
	forward    = "forward"
	input      = "input"
)

// ways are all the ways that a packet can take, by where it comes from.
var ways = []group{
	{"From outside to a container", []way{
		{
			"To a published port, translated by the engine (IPv4, and IPv6 where the engine translates it)", forward,
			[]string{"published4", "published6"},
			"the port's FROM",
			[]string{"TestScenario02From", "TestScenario03OnePortOfTwo", "TestScenario11ProxiedIPv6"},
		},
		{
			"The same under a rule with `match.host_ip`", forward,
			[]string{"published_at4", "published_at6"},
			"the rule's FROM at that address alone",
			[]string{"TestScenario20HostAddresses"},
		},
		{
			"To a published port that docker-proxy holds: IPv6 to an IPv4-only container, an engine without iptables", input,
			[]string{"host_ports4", "host_ports6", "host_any4", "host_any6"},
			"the container's FROM, and never `host.allow`",
			[]string{"TestScenario11ProxiedIPv6", "TestScenario14OtherEngines", "TestScenario34AddressesOfTheHost"},
		},
		{
			"Routed straight to a container's address, on a network that translates", forward,
			[]string{"refuse"},
			"refused, published or not",
			[]string{"TestScenario13RoutedStraight", "TestScenario14NATUnprotected"},
		},
		{
			"Routed straight to it in gateway mode `routed`, or over IPv6 where the engine translates none", forward,
			[]string{"routed4", "routed6"},
			"FROM for what is published, else refused",
			[]string{"TestScenario14Routed", "TestScenario13RoutedStraight"},
		},
		{
			"To a network in gateway mode `isolated`, or to an internal one", forward,
			[]string{"refuse"},
			"refused",
			[]string{"TestScenario14Isolated", "TestScenario17Internal"},
		},
		{
			"To a port published on 127.0.0.1, sent to 127.0.0.1 through the host", forward,
			[]string{"refuse_loopback"},
			"refused, whatever FROM says",
			[]string{"TestScenario12LoopbackPublished"},
		},
		{
			"To a network or a container that the engine made a moment ago", forward,
			[]string{"foreign", "refuse"},
			"refused until it is known",
			[]string{"TestScenario33FreshNetwork", "TestScenario21HammeredWhileStarting", "TestPodmanComesAndGoes"},
		},
		{
			"To an address that another container had", forward,
			[]string{"published4"},
			"what the new one may be reached from",
			[]string{"TestScenario08AddressTakenOver"},
		},
		{
			"To a container on macvlan or ipvlan", "", nil, "not filtered; `doctor` names the container",
			[]string{"TestScenario17Macvlan"},
		},
		{
			"To a container whose bridge has somebody else's link in it", forward,
			[]string{"inside", "foreign", "refuse"},
			"the bridge counts as outside",
			[]string{"TestScenario32ForeignBridge", "TestScenario32ForeignPort"},
		},
	}},
	{"From outside to the host", []way{
		{
			"From a source in `blocked`, on any link but lo", prerouting,
			[]string{"blocked4", "blocked6", "refuse_blocked"},
			"refused ahead of connection tracking, established or not",
			[]string{"TestBlocked", "TestBlockedBeforeTrusted", "TestScenario25Revocation"},
		},
		{
			"What no host can do without: ICMP errors, neighbour and router discovery, MLD, IGMP, answers to DHCP clients, and ping with `host.ping`", input,
			[]string{"essential"},
			"let in",
			[]string{"TestScenario19ControlTraffic", "TestEssentials"},
		},
		{
			"To a port of the host", input,
			[]string{"host_allow", "trusted4", "refuse_host"},
			"`host.allow`, else the set trusted, else `host.default`",
			[]string{"TestScenario15HostNetwork", "TestHostPorts"},
		},
		{
			"To a container in the host's network", input,
			[]string{"host_any4", "host_any6"},
			"its label or rule while it runs, never against `host.allow`",
			[]string{"TestScenario15HostNetwork", "TestHostNetwork"},
		},
		{
			"To the host's own 127.0.0.0/8 or ::1, with route_localnet", input,
			[]string{"refuse_loopback"},
			"refused",
			[]string{"TestScenario35RouteLocalnet"},
		},
		{
			"To a Swarm service in host mode", forward, []string{"published4"}, "as a container's", []string{"TestScenario18HostModeService"},
		},
		{
			"To a port of Swarm's routing mesh, over IPv4", forward,
			[]string{"published4", "published_at4"},
			"FROM of the service, or `swarm.ingress`",
			[]string{"TestSwarm", "TestScenario18RoutingMesh", "TestRoutingMeshOnManager", "TestRoutingMeshOnWorker"},
		},
		{
			"To the engine's own listener on a port of the mesh, over IPv6", input,
			[]string{"host_any4", "host_any6"},
			"the same",
			[]string{"TestSwarm", "TestScenario18RoutingMesh", "TestRoutingMeshOnManager"},
		},
		{
			"To the ports of a swarm's node", input,
			[]string{"swarm_ports", "swarm_nodes4", "swarm_nodes6"},
			"the other nodes, and else as any port of the host; VXLAN of an encrypted network only out of IPsec",
			[]string{"TestSwarm", "TestScenario18Nodes", "TestSwarmNodes"},
		},
		{
			"A connection that a helper expects (FTP), by a forged answer", input,
			[]string{"refuse_host"},
			"only ICMP is let in for being related",
			[]string{"TestScenario35FTPHelper"},
		},
	}},
	{"From a container", []way{
		{
			"To the outside", forward,
			[]string{"outbound", "leaving", "egress4", "egress6"},
			"its egress",
			[]string{"TestScenario16FromContainers", "TestEgressFromTheFirstPacket", "TestEgressFollowsSets"},
		},
		{
			"To the outside, from an address that is no known container's", forward,
			[]string{"outbound", "leaving", "arriving", "egress_unknown"},
			"the narrowest egress on that bridge; none while a container is being started there",
			[]string{"TestEgressFromTheFirstPacket", "TestPodmanEgress"},
		},
		{
			"With the source address of a container on another bridge", forward,
			[]string{"outbound", "leaving", "egress4", "egress_unknown"},
			"as an address that is no known container's",
			[]string{"TestBorrowedAddress"},
		},
		{
			"To a port of the host", input, []string{"to_host"}, "`containers.to_host`", []string{"TestScenario16FromContainers", "TestContainersToHost"},
		},
		{
			"To a published port through the host's address, translated", forward,
			[]string{"outbound", "to_published", "leaving"},
			"`containers.to_host`, and its egress on another bridge",
			[]string{"TestScenario16FromContainers"},
		},
		{
			"To a published port through docker-proxy", input,
			[]string{"proxied", "leaving", "to_host"},
			"its egress to the host's address, then `containers.to_host`",
			[]string{"TestScenario16FromContainers"},
		},
		{
			"To a container on another bridge", forward,
			[]string{"outbound", "peers", "leaving"},
			"`containers.to_containers`, its egress, and then Docker, which keeps bridges apart",
			[]string{"TestScenario16FromContainers", "TestToContainersAcrossBridges"},
		},
		{
			"To a container on the same bridge, with br_netfilter", forward,
			[]string{"outbound", "peers", "bridges"},
			"`containers.to_containers`; egress never",
			[]string{"TestScenario16FromContainers", "TestExplainWhatStaysInside"},
		},
		{
			"To a container on the same bridge, without br_netfilter", "", nil, "not filtered; the log, `status` and `doctor` say so where the policy asks for more",
			[]string{"TestExplainWhatStaysInside", "TestUnseen", "TestDoctor"},
		},
	}},
	{"Through the host, and from it", []way{
		{
			"Between two links that are not Docker's", forward,
			[]string{"foreign", "through_host"},
			"`forward.allow`, else `forward.default`",
			[]string{"TestForward", "TestExampleForward"},
		},
		{
			"Switched by a bridge that is not Docker's, with br_netfilter", forward, []string{"through_host", "bridges"}, "let through", []string{"TestScenario38BridgedLinks"},
		},
		{
			"Malformed, split, tunnelled, with another's source address, untracked or in another zone", forward,
			[]string{"forward", "input"},
			"as what it is once the kernel has put it together; what is unknown is refused",
			[]string{"TestAroundTheFirewall"},
		},
		{
			"From the host itself, to containers and elsewhere", "", nil, "not filtered", []string{"TestScenario12LoopbackPublished"},
		},
		{
			"Of an established connection", forward,
			[]string{"forward", "input"},
			"let through, until its permission is withdrawn: then both directions are dropped",
			[]string{"TestScenario25Revocation", "TestScenario25OlderThanTheFirewall"},
		},
	}},
}
