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

# The first policy keeps the ports open on which sshd listens.
policy=/etc/nftfw/policy.yaml
if [ "$action" = install ] && [ ! -e $policy ]; then
	ports=$(PATH=$PATH:/usr/sbin:/sbin sshd -T 2>/dev/null | awk '$1 == "port" { printf "%s%s/tcp", sep, $2; sep = ", " }') || ports=
	mkdir -p /etc/nftfw
	sed "s#22/tcp#${ports:-22/tcp}#" /usr/share/nftfw/policy.default.yaml >$policy.new
	mv $policy.new $policy
fi

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# A daemon that runs is replaced; the rules stand meanwhile.
	if [ "$action" = upgrade ]; then
		systemctl try-restart nftfw.service
	fi
fi

if [ "$action" = install ]; then
	cat <<'EOF'

nftfw is installed and enforces nothing yet.

  1. Edit /etc/nftfw/policy.yaml. See what it would do:
       nftfw check; nftfw ports; nftfw plan
  2. Start it, now and at boot. Keep a second ssh session open:
       systemctl enable --now nftfw
     A first start that would cut your ssh session only observes and says so.
  3. From then on apply changes on trial; they go back unless confirmed:
       nftfw apply --confirm 60s
       nftfw confirm

EOF
fi
