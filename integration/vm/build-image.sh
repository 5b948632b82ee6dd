#!/usr/bin/env bash
# Builds the image of a Debian release for the tests of whole machines, and
# prints the folder that it is in:
#
#	disk.img   the root file system, ext4
#	kernel     Debian's kernel for that release
#	initrd     the modules that reach the disk, and init: see below
#	version    the kernel's version
#
# usage: build-image.sh bookworm|trixie
#
# An image is Debian's own packages and nothing else. What a test brings along
# (nftfw, its unit, the agent) comes with each boot, as a second archive behind
# initrd: init copies what lies in its folder /payload over the root. So an
# image is built once and stays until this script changes or it is removed.
set -euo pipefail

suite=$1
here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../.." && pwd)/.cache/vm

# What the tests run in the machine. Docker's client is a package of its own
# from Debian 13 on, and belonged to docker.io before.
packages=(
	systemd-sysv udev kmod dbus iproute2 procps nftables iptables
	docker.io apparmor openssh-server openssh-client
)
case $suite in
bookworm) ;;
trixie) packages+=(docker-cli) ;;
*)
	echo "no image of $suite is known" >&2
	exit 2
	;;
esac

image=$cache/$suite-$(sha256sum "$0" | cut -c1-16)
if [ -e "$image/version" ]; then
	echo "$image"
	exit 0
fi

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
sources=/etc/apt/sources.list.d/debian.sources
if ! [ -r $sources ]; then
	echo "no $sources here, which says where Debian's packages come from" >&2
	exit 1
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/building-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# The machine's own source of packages, read for the other suite.
awk -v RS= -v ORS='\n\n' -v suite="$suite" '
	/(^|\n)Suites:[^\n]*-security/ { next }
	{ gsub(/(^|\n)Suites:[^\n]*/, "\nSuites: " suite); print }
' $sources >"$work/debian.sources"

# The kernel's package is unpacked and not installed: installing it would make
# an initrd with everything in it. It is taken while apt still has its lists.
cat >"$work/fetch-kernel" <<'HOOK'
#!/bin/sh
set -eu
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n1)
cd "$(dirname "$0")"
apt-get -qq download "$package"
HOOK
chmod 0755 "$work/fetch-kernel"

echo "building the image of Debian $suite: this takes a minute or two" >&2
list=$(IFS=, && echo "${packages[*]}")
mmdebstrap --quiet --mode=root --variant=minbase --include="$list" \
	--customize-hook="$work/fetch-kernel" \
	"$suite" "$root" "$work/debian.sources" >&2

dpkg -x "$work"/linux-image-*.deb "$work/kernel-package"
version=$(basename "$work"/kernel-package/boot/vmlinuz-*)
version=${version#vmlinuz-}
# Debian 13 keeps its modules below /usr/lib.
modules=$(find "$work/kernel-package" -type d -path "*lib/modules/$version")
for none in sound drivers/{gpu,media,infiniband,iio,staging,hwmon,usb,scsi,isdn,comedi,mtd,platform,input,bluetooth} drivers/net/{ethernet,wireless,wan,usb}; do
	rm -rf "$modules/kernel/$none"
done
mkdir -p "$root/lib/modules"
mv "$modules" "$root/lib/modules/$version"
depmod -b "$root" "$version"

# With a machine ID this is no first boot, at which systemd would decide anew
# which services are enabled.
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
# Nothing starts but what a test enables.
for unit in docker.service docker.socket containerd.service ssh.service nftables.service; do
	chroot "$root" systemctl --quiet disable $unit
done
chroot "$root" systemctl --quiet enable systemd-networkd.service
# Nothing waits for addresses to be found out: they are given.
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
rm -f "$root"/etc/hostname "$root"/etc/resolv.conf

# The initrd: busybox, the modules on the way to the disk, and init.
initrd=$work/initrd-root
mkdir -p "$initrd"/{bin,dev,proc,sys,newroot}
cp "$(command -v busybox)" "$initrd/bin/busybox"
for module in virtio_pci virtio_blk ext4 crc32c_generic; do
	modprobe -d "$root" -S "$version" --show-depends $module
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
n=0
while read -r module; do
	n=$((n + 1))
	case $module in
	*.xz) xz -dc "$module" ;;
	*) cat "$module" ;;
	esac >"$initrd/$(printf %02d $n).ko"
done <"$work/modules"
cat >"$initrd/init" <<'INIT'
#!/bin/busybox sh
# Finds the disk, copies the payload of this boot over it and starts systemd.
b=/bin/busybox
$b mount -t proc none /proc
$b mount -t sysfs none /sys
$b mount -t devtmpfs none /dev
for module in /*.ko; do $b insmod "$module"; done
tries=0
while ! [ -b /dev/vda ]; do
	tries=$((tries + 1))
	[ $tries -lt 500 ] || { echo "init: no disk"; $b poweroff -f; }
	$b usleep 20000
done
$b mount -t ext4 /dev/vda /newroot || { echo "init: no root"; $b poweroff -f; }
if [ -d /payload ]; then $b cp -a /payload/. /newroot/; fi
$b umount /sys /proc
exec $b switch_root -c /dev/console /newroot /lib/systemd/systemd
INIT
chmod 0755 "$initrd/init"
(cd "$initrd" && find . | busybox cpio -o -H newc) | gzip -1 >"$work/initrd"

# Nothing is to be brought up to date at the first boot (systemd-update-done).
touch "$root/etc/.updated" "$root/var/.updated"

cp "$work"/kernel-package/boot/vmlinuz-* "$work/kernel"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
mke2fs -q -t ext4 -d "$root" "$work/disk.img" 3G >&2
echo "$version" >"$work/version"

rm -rf "$root" "$initrd" "$work"/{kernel-package,debian.sources,fetch-kernel,modules} "$work"/*.deb
# Older images of the suite serve nobody any more.
find "$cache" -maxdepth 1 -name "$suite-*" -exec rm -rf {} +
chmod 0755 "$work"
mv "$work" "$image"
trap - EXIT
echo "$image"
