#!/bin/sh
# Before removing: "remove" or "upgrade" from dpkg, 0 or 1 from rpm.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl disable --now nftfw.service || true
fi
# Without its program nobody could open a port any more, so the rules go too.
if out=$(nftfw down --yes 2>&1); then
	case $out in
	*"no table"*) ;; # nothing was enforced
	*) echo "nftfw: the rules are removed; published ports are as Docker opens them" ;;
	esac
else
	echo "nftfw: the rules could not be removed; if they stand, do so with: nft delete table inet nftfw" >&2
fi
