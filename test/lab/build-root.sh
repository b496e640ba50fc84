#!/bin/bash
# Make the hypervisor's root file system as a folder.
# Usage: build-root.sh SUITE MIRROR FOLDER
set -euo pipefail

suite=$1 mirror=$2 root=$3

packages=(
	linux-image-amd64 systemd systemd-sysv dbus udev kmod iproute2 procps psmisc
	openssh-server busybox-static pciutils mdevctl jq
	# what Ansible's modules run with on a managed host
	python3 python3-apt
	libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86
	# what the disks of a moved server are made with
	qemu-utils
	# what server.sh makes a server of, besides what is there anyway
	qemu-guest-agent grub-pc-bin
)

list=$(IFS=, && echo "${packages[*]}")
# The image needs no initramfs: pack.sh makes a small one itself. The stand-in
# for update-initramfs saves the time of packing one that nobody boots.
# shellcheck disable=SC2016 # $1 is for the hooks' own shell
mmdebstrap --mode=root --variant=minbase --format=directory \
	--include="$list" \
	--aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/bash-completion/*' \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/local/sbin"' \
	--essential-hook='printf "#!/bin/sh\nexit 0\n" >"$1/usr/local/sbin/update-initramfs"' \
	--essential-hook='chmod 755 "$1/usr/local/sbin/update-initramfs"' \
	"$suite" "$root" "$mirror"
