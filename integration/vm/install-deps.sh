#!/usr/bin/env bash
# Installs what the tests of whole machines need and this machine lacks, and
# builds their images below .cache/vm. The kernels of the images are Debian's
# own; the emulator runs them in software, so no hardware support is needed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ "$(id -u)" != 0 ]; then
	echo 'NOT RUN: the tests of whole machines need root' >&2
	exit 1
fi
bash "$here/../install-deps.sh"

# A command that must exist, and the Debian package that has it.
needs=(
	qemu-system-x86_64:qemu-system-x86
	qemu-img:qemu-utils
	mmdebstrap:mmdebstrap
	busybox:busybox-static
	modprobe:kmod
	mke2fs:e2fsprogs
	xz:xz-utils
)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
	command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
fi

for suite in bookworm trixie; do
	bash "$here/build-image.sh" $suite
done
