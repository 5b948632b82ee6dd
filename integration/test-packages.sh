#!/usr/bin/env bash
# Installs, upgrades, removes and purges the packages in a root of Debian of
# their own, in a network namespace of its own. Nothing is started on this
# machine. As root on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root"
missing=()
for need in mmdebstrap:mmdebstrap lintian:lintian rpm:rpm; do
	command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
fi

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root

say "build two versions"
make -s packages PACKAGE_VERSION=0.1.0~test1 >/dev/null
cp dist/*.deb "$work/old.deb"; cp dist/*.rpm "$work/old.rpm"
make -s packages PACKAGE_VERSION=0.1.0~test2 >/dev/null
cp dist/*.deb "$work/new.deb"; cp dist/*.rpm "$work/new.rpm"

say "lintian"
# A Go program is linked statically, and nobody has a bug number for it.
lintian --fail-on error --suppress-tags statically-linked-binary,initial-upload-closes-no-bugs,no-changelog "$work/new.deb"

say "a root of Debian"
mmdebstrap --quiet --variant=minbase --include=nftables,iproute2,openssh-server,passwd,systemd bookworm "$root" >/dev/null
mkdir -p "$root/run/sshd"
sed -i 's/^#\?Port .*/ListenAddress 0.0.0.0:2222\nListenAddress [::]:2222\nListenAddress 127.0.0.1:922/' "$root/etc/ssh/sshd_config"
cp "$work"/*.deb "$work"/*.rpm "$root/root/"

# in_root runs a script in the root and in the one network namespace.
ip netns add "nftfwpkg$$"
trap 'ip netns del "nftfwpkg$$"; rm -rf --one-file-system "$work"' EXIT
in_root() {
	nsenter --net="/run/netns/nftfwpkg$$" unshare --mount --pid --fork --mount-proc="$root/proc" \
		chroot "$root" /bin/bash -euc "PATH=/usr/sbin:/usr/bin:/sbin:/bin; $1"
}
table() { in_root 'nft list tables'; }

# has demands that a text contains another, hasnt that it does not.
has() { case $1 in *"$2"*) ;; *) fail "\"$2\" is missing: $1" ;; esac; }
hasnt() { case $1 in *"$2"*) fail "\"$2\" is there: $1" ;; esac; }

say "install the .deb, where a second sshd listens on a port that the first has not"
out=$(in_root '
	/usr/sbin/sshd -f /dev/null -p 2200 -h /etc/ssh/ssh_host_ed25519_key
	dpkg -i /root/old.deb
' 2>&1) || fail "dpkg -i: $out"
has "$out" "nothing starts it yet"
has "$out" "open to all: 922/tcp, 2200/tcp, 2222/tcp (sshd)"
in_root '
	getent group nftfw
	grep -F "{ports: [922/tcp, 2200/tcp, 2222/tcp], from: any}" /etc/nftfw/policy.yaml
	nftfw check
	test "$(nftfw version)" = "nftfw 0.1.0~test1" || { nftfw version; exit 1; }
	test -s /usr/share/man/man8/nftfw-sets-add.8.gz
	test -s /usr/share/doc/nftfw/docs/guide.md
	test -s /usr/share/nftfw/policy.schema.json
	zcat /usr/share/man/man8/nftfw.8.gz | grep "^\.TH .* 20[2-9][0-9]\""
	zcat /usr/share/man/man8/nftfw.8.gz | grep -F "nftfw-sets(8)"
	bash -n /usr/share/bash-completion/completions/nftfw
	for f in /usr/share/doc/nftfw/examples/*.yaml; do nftfw check "$f"; done
	systemd-analyze verify /usr/lib/systemd/system/nftfw.service 2>&1 | grep -i nftfw && exit 1
	! systemctl --root=/ is-enabled nftfw.service
' || fail "what was installed is not as it should be"
[ -z "$(table)" ] || fail "installing loaded rules: $(table)"

say "upgrade keeps the policy and the rules"
in_root 'echo "# mine" >>/etc/nftfw/policy.yaml; nftfw apply'
case $(table) in *"inet nftfw"*) ;; *) fail "apply loaded nothing" ;; esac
out=$(in_root 'systemctl enable nftfw; dpkg -i /root/new.deb' 2>&1) || fail "dpkg -i: $out"
hasnt "$out" "nothing starts it yet"
in_root 'grep -qx "# mine" /etc/nftfw/policy.yaml; test "$(nftfw version)" = "nftfw 0.1.0~test2"' || fail "upgrade"
case $(table) in *"inet nftfw"*) ;; *) fail "the upgrade removed the rules" ;; esac

say "remove takes the rules away and keeps the policy"
has "$(in_root 'systemctl disable nftfw; dpkg -r nftfw' 2>&1)" "the rules are removed"
[ -z "$(table)" ] || fail "rules stand without their program: $(table)"
in_root 'test -e /etc/nftfw/policy.yaml; ! test -e /usr/sbin/nftfw' || fail "remove"

say "install again takes the policy as it is and says how to start; purge leaves nothing"
out=$(in_root 'dpkg -i /root/new.deb; grep -qx "# mine" /etc/nftfw/policy.yaml' 2>&1) || fail "install again: $out"
has "$out" "nothing starts it yet"
hasnt "$out" "open to all"
hasnt "$(in_root 'dpkg -r nftfw' 2>&1)" "rules"
in_root 'dpkg -P nftfw; ! getent group nftfw; ! test -e /etc/nftfw; ! test -e /var/lib/nftfw' || fail "purge"
left=$(find "$root" -xdev \( -path "$root/proc" -o -path "$root/root" \) -prune -o -name '*nftfw*' -print)
[ -z "$left" ] || fail "purge left $left"

say "the .rpm: install, upgrade, erase"
rpm_in() {
	nsenter --net="/run/netns/nftfwpkg$$" unshare --mount --pid --fork --mount-proc="$root/proc" rpm --root "$root" --nodeps "$@"
}
rpm --root "$root" --initdb
out=$(rpm_in -i "$work/old.rpm" 2>&1) || fail "rpm -i: $out"
has "$out" "nothing starts it yet"
has "$out" "open to all: 922/tcp, 2222/tcp (sshd)"
in_root 'echo "# mine" >>/etc/nftfw/policy.yaml; nftfw check; nftfw apply; getent group nftfw' || fail "rpm -i"
rpm_in -U "$work/new.rpm"
in_root 'grep -qx "# mine" /etc/nftfw/policy.yaml; test "$(nftfw version)" = "nftfw 0.1.0~test2"' || fail "rpm -U"
case $(table) in *"inet nftfw"*) ;; *) fail "rpm -U removed the rules" ;; esac
rpm_in -e nftfw
in_root '! test -e /usr/sbin/nftfw; test -e /etc/nftfw/policy.yaml' || fail "rpm -e"
[ -z "$(table)" ] || fail "rpm -e left the rules"

say "all is well"
