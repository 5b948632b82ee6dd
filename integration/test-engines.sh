#!/usr/bin/env bash
# Runs the integration tests on the machine's engine, on those of later Debian
# releases as far as they can be had, and on one that is built from its source, with
# both of its firewall backends. It says at the end which ran. What is given is handed
# to go test. The machine's engine is never skipped.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ "$(id -u)" != 0 ]; then
	echo 'NOT RUN: the tests need root for network namespaces and a Docker engine' >&2
	exit 1
fi
if ! command -v dockerd >/dev/null; then
	echo 'NOT RUN: there is no dockerd: bash integration/install-deps.sh installs it' >&2
	exit 1
fi

results=() failed=0
# suite VERSION FOLDER ARGS... runs the tests on one engine.
suite() {
	local version=$1 folder=$2
	shift 2
	echo "== engine $version"
	if (cd "$here" && CI=1 NFTFW_ENGINE=$folder "${GO:-go}" test -count=1 -timeout 30m "$@" .); then
		results+=("passed on engine $version")
	else
		results+=("FAILED on engine $version")
		failed=1
	fi
}

own=$(dockerd --version) || exit 1
own=${own#Docker version }
suite "${own%%,*}" "" "$@"
for debian in trixie sid; do
	if ! found=$(bash "$here/fetch-engines.sh" "$debian"); then
		results+=("SKIPPED: fetching the engine of Debian $debian failed")
	elif [ -z "$found" ]; then
		results+=("SKIPPED: the engine of Debian $debian cannot be had")
	else
		suite "${found%% *}" "${found#* }" "$@"
	fi
done
if ! found=$(bash "$here/build-engine.sh" nftables); then
	results+=("SKIPPED: the engine from its source cannot be built: see above")
else
	suite "${found%% *}" "$(dirname "${found#* }")" "$@"
	# There is no swarm then, and no chain of iptables to put rules into.
	suite "${found%% *} with its nftables backend" "${found#* }" \
		-skip '^TestScenario18|^TestSwarm|^TestImport|^TestDoctor(UFW|Firewalld)?$' "$@"
fi

echo
printf '%s\n' "${results[@]}"
exit $failed
