#!/bin/sh
# fetch-libraries.sh DIR: downloads the Debian packages of the libraries that bloomeryd is linked to, for the test that
# installs its package on a machine without a network. Does nothing for those that are there.
set -eu

mkdir -p "$1"
cd "$1"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for package in libdqlite0 libraft2 libuv1 liblz4-1 libsqlite3-0; do
	set -- "$package"_*.deb
	[ -s "$1" ] && continue
	for attempt in 1 2 3; do
		apt-get -q download "$package" >"$log" 2>&1 && break
		if [ "$attempt" -eq 3 ]; then
			cat "$log" >&2
			exit 1
		fi
		sleep "$attempt"
		[ "$(id -u)" -ne 0 ] || apt-get -q update >>"$log" 2>&1 || true
	done
done
