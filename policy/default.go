package policy

import "slices"

// defaultName is the Policy.Name of the embedded policy.
const defaultName = "default"

// Default returns the policy that holds where there is no policy file: the
// ports on which sshd listens are open to any, everything else to the set
// trusted only. Without any port in sshPorts it takes 22.
func Default(sshPorts []uint16) *Policy {
	p := blank(defaultName)
	ports := slices.Clone(sshPorts)
	slices.Sort(ports)
	ports = slices.DeleteFunc(slices.Compact(ports), func(port uint16) bool { return port == 0 })
	if len(ports) == 0 {
		ports = []uint16{22}
	}
	ssh := HostAllow{From: From{Any: true}, Pos: Pos{File: defaultName}}
	for _, port := range ports {
		ssh.Ports = append(ssh.Ports, PortSpec{Proto: protoTCP, Low: port, High: port})
	}
	p.Host.Allow = []HostAllow{ssh}
	return p
}

// blank is the policy of a file that says nothing but its version.
func blank(name string) *Policy {
	return &Policy{
		Name: name,
		Mode: Enforce,
		Sets: map[string]NamedSet{SetTrusted: {}, SetBlocked: {}, SetSwarmNodes: {}},
		Host: Host{Ping: true},
		Containers: Containers{
			Labels:       From{Any: true},
			ToContainers: ToContainersDocker,
			ToHost:       ToHost{Any: true},
			Egress:       Egress{Any: true},
		},
		Log:      Log{Drops: true, Rate: 10, Unit: "second"},
		OnRevoke: Cut,
	}
}
