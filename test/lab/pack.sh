#!/bin/bash
# Turn the root file system and the modules into a disk that boots.
# Usage: pack.sh WORK, where WORK holds root/ and modules/; puts disk.img,
# vmlinux, initrd, id_ed25519 and packages into it.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$1
root=$work/root
go=$(command -v go || echo /usr/local/go/bin/go)

release=$(basename "$root"/lib/modules/*)
if [ "$release" != "$(cat "$work/modules/release")" ]; then
	echo "lab: cannot use the modules: built for $(cat "$work/modules/release"), the image has $release" >&2
	exit 1
fi

# vmlinux_of FILE: the ELF image inside a bzImage. QEMU starts it at its PVH
# entry point, and neither boot has to unpack it under emulation.
vmlinux_of() {
	local name magic unpack at
	while read -r name magic unpack; do
		while IFS=: read -r at _; do
			# The unpacker complains of what follows the stream: the result decides.
			tail -c "+$((at + 1))" "$1" | $unpack >"$work/vmlinux.try" 2>/dev/null || true
			if [ "$(head -c 4 "$work/vmlinux.try")" = $'\x7fELF' ]; then
				cat "$work/vmlinux.try"
				rm "$work/vmlinux.try"
				return
			fi
		done < <(grep -aboP "$magic" "$1")
	done <<-'FORMATS'
		zstd \x28\xb5\x2f\xfd zstd -dcq
		xz \xfd7zXZ\x00 xz -dc
		gzip \x1f\x8b\x08 gzip -dc
	FORMATS
	echo "lab: cannot find an ELF image in $1" >&2
	return 1
}

# modules_for NAME...: the files that have to be loaded, in this order.
modules_for() {
	chroot "$root" modprobe -S "$release" --all --show-depends "$@" |
		awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# unpacked_module FILE TARGET
unpacked_module() {
	case $1 in
	*.xz) xz -dc "$1" >"$2" ;;
	*.zst) zstd -dcq "$1" >"$2" ;;
	*) cp "$1" "$2" ;;
	esac
}

# cpio_of FOLDER FILE: uncompressed, for the same reason as the kernel.
cpio_of() {
	(cd "$1" && find . | sort | cpio --quiet -o -H newc --owner=0:0) >"$2"
}

mkdir -p "$root/lib/modules/$release/extra"
cp "$work"/modules/*.ko "$root/lib/modules/$release/extra/"
chroot "$root" depmod "$release"
vmlinux_of "$root/boot/vmlinuz-$release" >"$work/vmlinux"

# The inner guest: the same kernel, and an initramfs of one program.
guest=$work/guest
mkdir -p "$guest"/{modules,proc,sys,dev} "$root/usr/local/share/lab"
(cd "$here" && CGO_ENABLED=0 GOOS=linux GOARCH=amd64 "$go" build -tags lab -trimpath \
	-ldflags '-s -w' -o "$guest/init" ./guest/init)
for name in button evdev; do
	modules_for "$name" | while read -r file; do
		unpacked_module "$root$file" "$guest/modules/$(basename "${file%%.ko*}").ko"
	done
done
cpio_of "$guest" "$root/usr/local/share/lab/guest-initrd"
cp "$work/vmlinux" "$root/usr/local/share/lab/guest-vmlinux"
# qboot starts the kernel and leaves PCI to it, where SeaBIOS takes as long as
# the kernel does. With Debian 12's QEMU, qboot hangs when the guest has an mdev
# from the beginning.
bios=/usr/share/qemu/qboot.rom
# shellcheck disable=SC2016 # dpkg-query's own variable
qemu=$(chroot "$root" dpkg-query -W -f '${Version}' qemu-system-x86)
if chroot "$root" dpkg --compare-versions "${qemu#*:}" lt 10; then
	bios=/usr/share/seabios/bios-256k.bin
fi
ln -s "$bios" "$root/usr/local/share/lab/guest-bios"

# The hypervisor's own initramfs only mounts the disk.
initrd=$work/early
mkdir -p "$initrd"/{bin,modules,proc,sys,dev,root}
cp "$(find "$root"/usr/bin/busybox "$root"/bin/busybox 2>/dev/null | head -n 1)" "$initrd/bin/busybox"
modules_for virtio_pci virtio_blk virtio_net crc32c ext4 | while read -r file; do
	unpacked_module "$root$file" "$initrd/modules/$(basename "${file%%.ko*}").ko"
	echo "/modules/$(basename "${file%%.ko*}").ko" >>"$initrd/modules/order"
done
cp "$here/early-init" "$initrd/init"
chmod 755 "$initrd/init"
cpio_of "$initrd" "$work/initrd"

# A server that is to be moved, as a disk.
# shellcheck source=test/lab/server.sh
. "$here/server.sh"

# Our own settings over Debian's.
cp -a --no-preserve=ownership "$here/rootfs/." "$root/"
chown -R 0:0 "$root/etc" "$root/usr/local"
echo lab >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 lab\n' >"$root/etc/hosts"
: >"$root/etc/fstab"
rm -f "$root/etc/resolv.conf" "$root/usr/local/sbin/update-initramfs"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
ssh-keygen -q -t ed25519 -N '' -C gpuvirt-lab -f "$work/id_ed25519"
install -d -m 700 "$root/root/.ssh"
install -m 600 "$work/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
# shellcheck disable=SC2016 # dpkg-query's own variables
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' >"$work/packages"

# Unpacking modules takes longer under emulation than reading them.
modules_for mtty mdpy mbochs gpuvirt_vgpu kvm_amd vfio_iommu_type1 vfio_pci nvme bochs xhci_pci button evdev fuse nfnetlink |
	while read -r file; do
		case $file in
		*.xz) xz -d "$root$file" ;;
		esac
	done
chroot "$root" depmod "$release"

# Rules for devices that this board does not have are tried all the same.
mkdir -p "$root/etc/udev/rules.d"
for name in 50-firmware 55-dm 60-autosuspend 60-cdrom_id 60-dmi-id 60-drm 60-evdev 60-fido-id 60-infiniband \
	60-input-id 60-persistent-alsa 60-persistent-input 60-persistent-storage-dm 60-persistent-storage-mtd \
	60-persistent-storage-tape 60-persistent-storage 60-persistent-v4l 60-sensor 60-serial 64-btrfs 70-camera \
	70-joystick 70-memory 70-mouse 70-power-switch 70-touchpad 70-uaccess 71-seat 73-seat-late 73-special-net-names \
	75-net-description 75-probe_mtd 78-sound-card 80-debian-compat 81-net-dhcp 90-iocost 95-dm-notify; do
	ln -s /dev/null "$root/etc/udev/rules.d/$name.rules"
done

# Generators are a process each, at every boot and daemon-reload.
mkdir -p "$root/etc/systemd/system-generators"
for name in "$root"/usr/lib/systemd/system-generators/*; do
	ln -s /dev/null "$root/etc/systemd/system-generators/${name##*/}"
done

# systemctl in a chroot complains about /proc, so the links are made by hand.
units=$root/etc/systemd/system
mkdir -p "$units/multi-user.target.wants"
ln -sf /usr/lib/systemd/system/multi-user.target "$units/default.target"
for unit in lab-net.service lab-guestlogs.service; do
	ln -sf "../$unit" "$units/multi-user.target.wants/$unit"
done
# What a hypervisor has running and this one does not need: it all costs
# seconds under emulation. libvirt-guests would try to save guests at
# shutdown, which guests with a vfio device refuse.
masked=(
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer
	e2scrub_all.timer e2scrub_reap.service fstrim.timer logrotate.timer
	getty@tty1.service serial-getty@ttyS0.service getty.target
	systemd-networkd.service systemd-timesyncd.service systemd-hwdb-update.service
	systemd-update-utmp.service systemd-update-utmp-runlevel.service
	systemd-pcrphase.service systemd-pcrphase-initrd.service systemd-boot-update.service
	ldconfig.service systemd-journal-catalog-update.service systemd-firstboot.service
	systemd-machine-id-commit.service keyboard-setup.service console-setup.service
	networking.service libvirt-guests.service
	modprobe@drm.service modprobe@efi_pstore.service modprobe@configfs.service modprobe@fuse.service
	systemd-ask-password-console.path systemd-ask-password-wall.path
	systemd-creds.socket systemd-importd.socket systemd-initctl.socket systemd-sysext.socket
	sys-kernel-tracing.mount dev-mqueue.mount run-lock.mount systemd-tmpfiles-clean.timer
	sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-pstore.service
	systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-hostnamed.socket
	systemd-udev-load-credentials.service systemd-random-seed.service sshd-keygen.service
)
for unit in "${masked[@]}"; do
	ln -sf /dev/null "$units/$unit"
done

# As if the first boot after an update had been.
touch "$root/etc/.updated" "$root/var/.updated"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/boot/vmlinuz-* "$root"/boot/initrd*
rm -f "$work/disk.img"
truncate -s 6G "$work/disk.img"
# No lazy initialisation: the kernel would do it during the tests.
mke2fs -q -t ext4 -d "$root" -m 0 -i 32768 -J size=32 \
	-E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 "$work/disk.img"
