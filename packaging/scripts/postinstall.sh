#!/bin/sh
# After installing: "configure" and the old version from dpkg, 1 or 2 from rpm.
set -e

case "$1" in
configure)
	if [ -n "$2" ]; then action=upgrade; else action=install; fi ;;
1) action=install ;;
2) action=upgrade ;;
*) exit 0 ;;
esac

# Members of this group may talk to the daemon.
getent group nftfw >/dev/null || groupadd --system nftfw

# The ports on which sshd is to listen, and those on which it does, or systemd for
# it. What `sshd -T` says of `port` does not hold where an address has its own.
ssh_ports() {
	PATH=$PATH:/usr/sbin:/sbin
	{
		sshd -T | awk '$1 == "listenaddress" { print $2 }'
		ss -Htlnp | awk '/"sshd"/ { print $4 }'
		for socket in ssh.socket sshd.socket; do
			systemctl --quiet is-active $socket && systemctl show --property=Listen $socket | awk '{ print $1 }'
		done
	} 2>/dev/null | sed 's/.*://' | sort -nu | awk '/^[0-9]+$/ { printf "%s%s/tcp", sep, $1; sep = ", " }'
}

# The first policy keeps these ports open.
policy=/etc/nftfw/policy.yaml
open=
if [ "$action" = install ] && [ ! -e $policy ]; then
	ports=$(ssh_ports)
	ports=${ports:-22/tcp}
	mkdir -p /etc/nftfw
	sed "s#22/tcp#$ports#" /usr/share/nftfw/policy.default.yaml >$policy.new
	mv $policy.new $policy
	open="
     It leaves open to all: $ports (sshd)."
fi

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# A daemon that runs is replaced; the rules stand meanwhile.
	if [ "$action" = upgrade ]; then
		systemctl try-restart nftfw.service
	fi
fi

if ! systemctl --quiet is-enabled nftfw.service 2>/dev/null; then
	cat <<EOF

nftfw is installed, and nothing starts it yet.

  1. Edit /etc/nftfw/policy.yaml.$open
     See what it would do:
       nftfw check; nftfw ports; nftfw plan
  2. Start it, now and at boot. Keep a second ssh session open:
       systemctl enable --now nftfw
     A first start that would cut your ssh session only observes and says so.
  3. From then on apply changes on trial; they go back unless confirmed:
       nftfw apply --confirm 60s
       nftfw confirm

EOF
fi
