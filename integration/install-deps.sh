#!/usr/bin/env bash
# Installs what the tests need and this machine lacks, or with the argument demo
# what the demo needs. Nothing that it installs is started, now or at the next
# boot: a dockerd in the machine's own network namespace would write rules there.
set -euo pipefail

# A command that must exist, and the Debian package that has it.
needs=(
	dockerd:docker.io
	containerd:containerd
	runc:runc
	docker:docker.io
	nft:nftables
	ip:iproute2
	nsenter:util-linux
)
[ "${1:-}" = demo ] || needs+=(
	iptables:iptables
	ipset:ipset
	ufw:ufw
	firewalld:firewalld
	dbus-daemon:dbus-daemon
	sysctl:procps
	prometheus:prometheus
	promtool:prometheus
	etcd:etcd-server
	etcdctl:etcd-client
	sshd:openssh-server
	ssh:openssh-client
	strace:strace
	docker-compose:docker-compose
	podman:podman
	/usr/lib/podman/netavark:netavark
	/usr/lib/cni/bridge:containernetworking-plugins
)

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
	command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi

if [ "$(id -u)" != 0 ]; then
	echo "not root, so not installed: ${missing[*]}" >&2
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "no apt-get here; please install what corresponds to Debian's: ${missing[*]}" >&2
	exit 1
fi

# Debian asks this script before a package's service is started; 101 is no.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 0755 $policy
fi

# atboot lists what systemd starts at boot, where it is the init.
atboot() {
	[ ! -d /run/systemd/system ] || systemctl list-unit-files --state=enabled --no-legend | awk '{ print $1 }' | sort
}

before=$(atboot)
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
mapfile -t new < <(comm -13 <(echo "$before") <(atboot))
if [ ${#new[@]} -gt 0 ]; then
	systemctl --quiet disable "${new[@]}"
	echo "not started at boot, which systemctl enable would change: ${new[*]}" >&2
fi
