#!/bin/sh
# Installs the Debian packages that Bloomery's build, tests and virtual rack need.
# Silent and quick when none is missing. Needs root or sudo only when one is.
set -eu

packages='
binutils bzip2 ca-certificates cpio dosfstools e2fsprogs gcc gdisk iproute2 kmod libc6-dev make mmdebstrap mtools
openssh-client ovmf qemu-system-x86 qemu-utils swtpm systemd-boot-efi util-linux xz-utils zstd
golang-github-canonical-go-dqlite-dev libdqlite-dev libsqlite3-dev pkg-config python3 sqlite3
'

missing=''
for package in $packages; do
	status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
	[ "$status" = 'install ok installed' ] || missing="$missing $package"
done

if ! command -v go >/dev/null 2>&1; then
	echo 'setup: no go command in PATH: install Go 1.26 or newer and put its bin folder in PATH' >&2
	exit 1
fi

[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
	as_root=''
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
	as_root='sudo'
elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then
	as_root='sudo'
else
	echo "setup: these Debian packages are missing:$missing" >&2
	echo 'setup: run it again as root, or let this user use sudo' >&2
	exit 1
fi

echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for attempt in 1 2 3; do
	# shellcheck disable=SC2086 # both are lists of words
	if $as_root apt-get update >"$log" 2>&1 &&
		$as_root apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; then
		exit 0
	fi
	echo "setup: apt-get failed (try $attempt of 3)" >&2
	sleep "$attempt"
done
tail -n 30 "$log" >&2
exit 1
