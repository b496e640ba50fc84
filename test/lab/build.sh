#!/bin/bash
# Build the lab's hypervisor image from Debian packages, once per content of
# the files that go into it. Usage: [SUITE=trixie|bookworm] test/lab/build.sh
#
# Result: a folder .cache/lab/SUITE-HASH, reachable as .cache/lab/SUITE, with
#   disk.img     the hypervisor's root file system (ext4, no partition table)
#   vmlinux      its kernel, uncompressed; initrd: what mounts the disk
#   id_ed25519   the key that root of the hypervisor accepts
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
suite=${SUITE:-trixie}
mirror=${LAB_MIRROR:-http://deb.debian.org/debian}
cache=${LAB_CACHE:-$repo/.cache/lab}

case $suite in
trixie) series=6.12 ;;
bookworm) series=6.1 ;;
*)
	echo "lab: cannot build suite '$suite': trixie and bookworm are known" >&2
	exit 2
	;;
esac

# Everything that decides what the image holds. The harness is not in it.
key=$(cd "$here" && {
	echo "$suite $mirror"
	find build.sh build-modules.sh build-root.sh pack.sh server.sh early-init guest module rootfs server -type f -print0 |
		LC_ALL=C sort -z | xargs -0 sha256sum
	find rootfs server -printf '%P %m %l\n' | LC_ALL=C sort
} | sha256sum | cut -c1-16)
out=$cache/$suite-$key

use_cached() {
	[ -e "$out/complete" ] || return 0
	ln -sfn "$suite-$key" "$cache/$suite"
	echo "lab: $suite image is up to date: $out"
	exit 0
}
use_cached
if [ "$(id -u)" != 0 ]; then
	echo "lab: cannot build the image: run as root" >&2
	exit 1
fi

mkdir -p "$cache"
# Two builds at once would fight for the disk and for the same folder.
exec 9>"$cache/lock"
flock 9
use_cached # by the one that we waited for

began=$SECONDS
work=$cache/build-$suite
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
say() { echo "lab: [$((SECONDS - began)) s] $*"; }

say "building the $suite image, some three minutes; logs in $cache/*.log"
# The modules need a compiler, the image must not have one: two roots, made
# at the same time.
"$here/build-modules.sh" "$suite" "$mirror" "$series" "$work/modules" >"$cache/modules-$suite.log" 2>&1 &
modules=$!
if ! "$here/build-root.sh" "$suite" "$mirror" "$work/root" >"$cache/root-$suite.log" 2>&1; then
	tail -n 30 "$cache/root-$suite.log" >&2
	echo "lab: cannot make the root file system" >&2
	kill "$modules" || true
	exit 1
fi
say "root file system made"
if ! wait "$modules"; then
	tail -n 30 "$cache/modules-$suite.log" >&2
	echo "lab: cannot build the kernel modules" >&2
	exit 1
fi
say "kernel modules built"
"$here/pack.sh" "$work"
say "disk packed"

rm -rf "$out"
mkdir "$out"
mv "$work"/{disk.img,vmlinux,initrd,id_ed25519,packages} "$out/"
touch "$out/complete"
ln -sfn "$suite-$key" "$cache/$suite"
# Older generations of this suite go, so that they do not pile up. A lab that
# runs from one holds its files open.
find "$cache" -mindepth 1 -maxdepth 1 -type d -name "$suite-*" ! -name "$suite-$key" -exec rm -rf {} +
say "done: $out ($(du -sh "$out" | cut -f1))"
