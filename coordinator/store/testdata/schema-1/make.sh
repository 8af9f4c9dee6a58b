#!/bin/sh
# Makes data.tar.zst: what the program that knew schema version 1 (commit ad8778c) left on disk, filled through its own API.
# The job in it runs until the year 2126, so that the test that reads it never fails on a date.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'git -C "$here" worktree remove --force "$work/tree"; rm -rf "$work"' EXIT
git -C "$here" worktree add --detach "$work/tree" ad8778c
cp "$here/fill_test.go.txt" "$work/tree/coordinator/fill_test.go"
mkdir "$work/data"
(cd "$work/tree" && FIXTURE_OUT="$work/data" go test -tags libsqlite3 -count 1 -run TestFillDatabase -v ./coordinator)
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work/data" -c dqlite secret.key | zstd -19 --long=24 -q -f -o "$here/data.tar.zst"
