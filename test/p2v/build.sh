#!/bin/bash
# Build the disks of the "physical server" from Debian packages, once per content of the
# files that go into them. Usage: test/p2v/build.sh
#
# Result: a folder .cache/p2v/HASH, reachable as .cache/p2v/image, with
#   bios-1.img            a whole disk: MBR, ext4, GRUB
#   uefi-1.img uefi-2.img two whole disks: GPT, LVM over both, ext4, GRUB
#   id_ed25519            the key that its root accepts
#   host_key.pub          the key that its ssh server shows
#   agent/*.deb           QEMU's guest agent with what it needs and the server lacks
set -euo pipefail
export LC_ALL=C

if [ $# != 0 ]; then
	echo "p2v: cannot take \"$1\": usage: test/p2v/build.sh, which takes nothing" >&2
	exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
suite=bookworm
mirror=${LAB_MIRROR:-http://deb.debian.org/debian}
cache=${P2V_CACHE:-$repo/.cache/p2v}

key=$(cd "$here" && {
	echo "$suite $mirror"
	find build.sh disk.sh rootfs -type f -print0 | sort -z | xargs -0 sha256sum
	find rootfs -printf '%P %m %l\n' | sort
} | sha256sum | cut -c1-16)
out=$cache/$key

use_cached() {
	[ -e "$out/complete" ] || return 0
	ln -sfn "$key" "$cache/image"
	exit 0
}
use_cached
if [ "$(id -u)" != 0 ]; then
	echo "p2v: cannot build the image: run as root" >&2
	exit 1
fi
mkdir -p "$cache"
# Two builds at once would fight for the disk and for the same folder.
exec 9>"$cache/lock"
flock 9
use_cached # by the one that we waited for

began=$SECONDS
say() { echo "p2v: [$((SECONDS - began)) s] $*"; }
work=$cache/build
rm -rf "$work"
mkdir -p "$work/agent"
trap 'rm -rf "$work"' EXIT
root=$work/root

say "building the physical server's disks, some two minutes; log in $cache/build.log"
packages=(
	linux-image-cloud-amd64 grub-pc grub-efi-amd64-bin initramfs-tools zstd e2fsprogs lvm2
	systemd-sysv udev dbus kmod pciutils iproute2 ifupdown openssh-server
)
build() {
	# What the guest agent needs is fetched while apt works in there: a server without a
	# network gets it later.
	# shellcheck disable=SC2016 # $1 is for the hooks' own shell
	mmdebstrap --mode=root --variant=minbase --format=directory \
		--include="$(IFS=, && echo "${packages[*]}")" \
		--aptopt='Acquire::Languages "none"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/info/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
		--customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -y --no-install-recommends --download-only install qemu-guest-agent' \
		--customize-hook='copy-out /var/cache/apt/archives '"$work/agent" \
		"$suite" "$root" "$mirror"
	mv "$work"/agent/archives/*.deb "$work/agent/"
	rm -rf "$work/agent/archives"
	ssh-keygen -q -t ed25519 -N '' -C p2v-test -f "$work/id_ed25519"
	"$here/disk.sh" "$work" bios
	"$here/disk.sh" "$work" uefi
}
if ! build >"$cache/build.log" 2>&1; then
	tail -n 30 "$cache/build.log" >&2
	echo 'p2v: cannot build the disks' >&2
	exit 1
fi

rm -rf "$out"
mkdir "$out"
mv "$work"/{bios-1.img,uefi-1.img,uefi-2.img,id_ed25519,host_key.pub,agent} "$out/"
touch "$out/complete"
ln -sfn "$key" "$cache/image"
# Older generations go, so that they do not pile up.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" ! -name build -exec rm -rf {} +
say "done: $out ($(du -sh "$out" | cut -f1))"
