#!/bin/bash
# Install what the tests of moving a server need on a bare Debian 12 or 13. Does nothing,
# and needs no network, when all of it is there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The emulator, mmdebstrap and ssh.
"$here/../lab/deps.sh"

gtk=libgtk-3-0t64
grep -q '^VERSION_ID="12"' /etc/os-release && gtk=libgtk-3-0

packages=(
	virt-v2v nbdkit guestfs-tools libguestfs-tools qemu-utils ovmf
	# libvirt itself, with virt-qemu-run, and without the service that would start on this machine
	libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients iproute2 iptables
	# a kernel for libguestfs's appliance, which a container does not have
	linux-image-cloud-amd64
	# virt-p2v itself, which links to GTK also where it shows no window
	virt-p2v "$gtk" xz-utils openssh-client pciutils
	# for the image
	fdisk mtools dosfstools
	# debugfs, which reads a mirror
	e2fsprogs
)
missing=()
for package in "${packages[@]}"; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} != 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "p2v: cannot install ${missing[*]}: run as root" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# A folder of its own: where apt's is cleaned at the end of any run of it, two runs at
# the same time take each other's packages away.
archives=$(mktemp -d)
trap 'rm -rf "$archives"' EXIT
mkdir "$archives/partial"
apt-get -qq -o DPkg::Lock::Timeout=550 update
apt-get -qq -o DPkg::Lock::Timeout=550 -o "Dir::Cache::archives=$archives" \
	install -y --no-install-recommends "${missing[@]}"
