#!/bin/bash
# Build the kernel's sample mdev drivers, from Debian's linux-source package,
# and our own module, against Debian's headers, in a root of their own.
# Usage: build-modules.sh SUITE MIRROR SERIES FOLDER
# Result: FOLDER/*.ko and FOLDER/release, the kernel release they are for.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=$1 mirror=$2 series=$3 out=$4
root=$out.root
trap 'rm -rf "$root"' EXIT

mmdebstrap --mode=root --variant=apt --format=directory \
	--include="make,xz-utils,linux-headers-amd64,linux-source-$series" \
	--aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	"$suite" "$root" "$mirror"

release=$(basename "$root"/lib/modules/*)
mkdir -p "$root/build"
tar -C "$root/build" --strip-components=3 -xJf "$root/usr/src/linux-source-$series.tar.xz" \
	"linux-source-$series/samples/vfio-mdev"
cp "$here"/module/* "$root/build/"
printf '%s\n' 'obj-m := mtty.o mdpy.o mbochs.o gpuvirt_vgpu.o' \
	'gpuvirt_vgpu-y := card.o vfio.o mdev.o device.o' >"$root/build/Makefile"
chroot "$root" make -C "/lib/modules/$release/build" M=/build modules

mkdir -p "$out"
cp "$root"/build/{mtty,mdpy,mbochs,gpuvirt_vgpu}.ko "$out/"
echo "$release" >"$out/release"
