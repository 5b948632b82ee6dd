#!/usr/bin/env bash
# Builds a Docker engine that no Debian release has from the Go modules of its source,
# with docker-proxy and the runc that it asks for, into .cache/engines/VERSION, and
# prints "VERSION FOLDER", FOLDER being what the tests take as NFTFW_ENGINE. With the
# argument nftables it is a folder whose engine writes nftables rules instead of
# iptables'. It takes ten minutes the first time, and installs what runc is built with.
set -euo pipefail

moby=v2.0.0-beta.24 # of the module; engines of release 29 are made of it
runc=v1.3.3
version=29.0.0-$moby

root=$(cd "$(dirname "$0")/.." && pwd)
folder=$root/.cache/engines/$version
go=${GO:-go}

# build VERSION FLAGS... -- PACKAGES... builds programs of one module.
build() {
	local version=$1 dir flags=()
	shift
	while [ "$1" != -- ]; do
		flags+=("$1")
		shift
	done
	shift
	dir=$(mktemp -d)
	(
		cd "$dir"
		"$go" mod init engine
		"$go" get "${@/%/@$version}"
		"$go" build -trimpath "${flags[@]}" -o "$folder.new/" "$@"
	) >&2
	rm -rf "$dir"
}

if [ ! -x "$folder/dockerd" ]; then
	if ! pkg-config --exists libseccomp 2>/dev/null || ! command -v gcc >/dev/null; then
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev pkg-config libseccomp-dev </dev/null >&2
	fi
	rm -rf "$folder.new"
	mkdir -p "$folder.new"
	CGO_ENABLED=0 build $moby -ldflags "-s -w -X github.com/moby/moby/v2/dockerversion.Version=$version" -- \
		github.com/moby/moby/v2/cmd/dockerd github.com/moby/moby/v2/cmd/docker-proxy
	CGO_ENABLED=1 build $runc -tags seccomp -- github.com/opencontainers/runc
	rm -rf "$folder"
	mv "$folder.new" "$folder"
fi
if [ "${1:-}" = nftables ]; then
	mkdir -p "$folder/nftables"
	ln -sf ../docker-proxy ../runc "$folder/nftables/"
	printf '#!/bin/sh\nexec %q --firewall-backend=nftables "$@"\n' "$folder/dockerd" >"$folder/nftables/dockerd"
	chmod 0755 "$folder/nftables/dockerd"
	echo "$version $folder/nftables"
else
	echo "$version $folder"
fi
