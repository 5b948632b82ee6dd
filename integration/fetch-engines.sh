#!/usr/bin/env bash
# Fetches the engines of later Debian releases into .cache/engines/VERSION and
# prints "VERSION FOLDER" for each that is there, FOLDER being what the tests
# take as NFTFW_ENGINE. The machine's own packages and sources stay as they
# are. A suite that cannot be had is named on stderr, and is no error: whoever
# counts on it looks at what was printed.
set -euo pipefail

suites=(${*:-trixie sid})
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache/engines

skip() {
	echo "SKIPPED: the engine of Debian $1: $2" >&2
}

# The machine's own source of Debian packages, read for another suite.
# Security updates have a suite of their own, which not every release has.
sources=/etc/apt/sources.list.d/debian.sources
other_suite() {
	awk -v RS= -v ORS='\n\n' -v suite="$1" '
		/(^|\n)Suites:[^\n]*-security/ { next }
		{ gsub(/(^|\n)Suites:[^\n]*/, "\nSuites: " suite); print }
	' "$sources"
}

fetch() {
	local suite=$1 at=$cache/suites/$1
	# An engine that was fetched stays until somebody removes the cache.
	if [ ! -s "$at/version" ]; then
		command -v apt-get >/dev/null && [ -r "$sources" ] || { skip "$suite" "no apt-get or no $sources here"; return; }
		mkdir -p "$at"/{sources,lists/partial,archives/partial}
		other_suite "$suite" >"$at/sources/debian.sources"
		local apt=(
			-q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$at/sources"
			-o Dir::State::Lists="$at/lists" -o Dir::Cache="$at" -o APT::Sandbox::User=root
			-o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::http::Timeout=30
		)
		timeout 300 apt-get "${apt[@]}" update >&2 || { skip "$suite" "its package lists cannot be had"; return; }
		rm -f "$at"/*.deb
		(cd "$at" && timeout 300 apt-get "${apt[@]}" download docker.io >&2) ||
			{ skip "$suite" "its package docker.io cannot be had"; return; }
		dpkg -x "$at"/docker.io_*.deb "$at/unpacked"
		# Docker's number is what comes ahead of Debian's own part of it.
		local version
		version=$(dpkg-deb -f "$at"/docker.io_*.deb Version)
		version=${version%%[+~-]*}
		rm -rf "$at"/*.deb "$at"/*.bin "$at/lists" "$at/archives" "${cache:?}/$version"
		mv "$at/unpacked" "$cache/$version"
		echo "$version" >"$at/version"
	fi
	local version
	version=$(<"$at/version")
	if ! "$cache/$version/usr/sbin/dockerd" --version >&2; then
		skip "$suite" "its dockerd $version does not run here"
		return
	fi
	echo "$version $cache/$version/usr/sbin"
}

for suite in "${suites[@]}"; do
	fetch "$suite"
done
