#!/bin/sh
# A libvirtd for the system that shares nothing with this machine's: folders, users and a
# network of its own, with a bridge "lan". Usage, in namespaces of its own (mount, net, pid):
# libvirtd.sh FOLDER
set -eu

dir=$1
mount --make-rprivate /
for at in run lib cache log etc; do
	case $at in
	run) place=/run/libvirt ;;
	etc) place=/etc/libvirt ;;
	*) place=/var/$at/libvirt ;;
	esac
	mkdir -p "$place" "$dir/$at"
	chmod 0711 "$dir/$at"
	mount --bind "$dir/$at" "$place"
done

# The user of QEMU, which Debian's package of libvirt's service makes.
{
	grep -v '^libvirt-qemu:' /etc/passwd
	echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin'
} >"$dir/passwd"
{
	grep -v '^\(libvirt-qemu\|kvm\):' /etc/group
	echo 'kvm:x:64055:'
	echo 'libvirt-qemu:x:64056:'
} >"$dir/group"
chmod 0644 "$dir/passwd" "$dir/group"
mount --bind "$dir/passwd" /etc/passwd
mount --bind "$dir/group" /etc/group

# QEMU emulates. Where its user may not use KVM and root may, libvirt would never believe
# what it has found out of QEMU, and find it out again for each VM, which takes minutes.
if [ -e /dev/kvm ]; then
	: >"$dir/kvm"
	chmod 0 "$dir/kvm"
	mount --bind "$dir/kvm" /dev/kvm
fi

# No AppArmor or SELinux to ask, and no cgroups that a container would let it write.
cat >/etc/libvirt/qemu.conf <<-'CONF'
	security_driver = "none"
	namespaces = []
	cgroup_controllers = []
CONF
cat >/etc/libvirt/libvirtd.conf <<-'CONF'
	auth_unix_rw = "none"
	log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
CONF

# What libvirt knows of bridges it reads in /sys, which shows the network that it was mounted in.
mkdir -p "$dir/sys"
mount -t sysfs sysfs "$dir/sys"
for at in class/net devices/virtual/net; do
	mount --bind "$dir/sys/$at" "/sys/$at"
done

ip link set lo up
ip link add lan type bridge
ip link set lan up
virtlogd &
libvirtd &
# This shell takes in what QEMU leaves when it ends: libvirt waits for that.
wait $!
