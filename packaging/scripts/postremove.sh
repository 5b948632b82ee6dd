#!/bin/sh
# After removing: "remove", "purge" or "upgrade" from dpkg, 0 or 1 from rpm.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
case "$1" in
purge)
	rm -rf /etc/nftfw /var/lib/nftfw
	if getent group nftfw >/dev/null; then
		groupdel nftfw || true
	fi
	;;
esac
