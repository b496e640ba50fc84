#!/bin/bash
# Turn the root file system into disks that boot, without mounting anything.
# Usage: disk.sh WORK bios|uefi, where WORK holds root/ and id_ed25519.pub; puts
# FIRMWARE-1.img, for UEFI FIRMWARE-2.img, and host_key.pub into it.
#
# BIOS: one disk with an MBR, and ext4 on its only partition.
# UEFI: a disk with a GPT, and one without a table. LVM is on both, and ext4 on a volume that
# begins on the second and ends on the first.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$1 firmware=$2
root=$work/root
disk=$work/$firmware-1.img more=$work/$firmware-2.img
modules=$root/usr/lib/grub

# Sectors of 512 bytes. The loader is in the gap behind the MBR, or on the EFI partition. The
# system is told by its pieces: where each begins, and how long it is. Tests know them as well
# (rootPieces in server.go).
mib=2048
rootid=6d0f6bb3-6f3c-4d2a-9f6a-51d1c6f0a7b1
espid=5A7C-10E2
case $firmware in
bios)
	first=1 last=$((mib - 1)) size=$((2560 * mib))
	pieces=("$disk $mib $((size - mib))")
	device=UUID=$rootid table=(part_msdos)
	;;
uefi)
	# LVM keeps the first MiB of each of its disks for itself, and gives out 4 MiB at a time.
	first=$mib last=$((34 * mib - 1)) size=$((2304 * mib)) moresize=$((257 * mib))
	pieces=("$more $mib $((256 * mib))" "$disk $((35 * mib)) $((2268 * mib))")
	device=/dev/mapper/system-root table=(part_gpt lvm)
	;;
esac
kernel=$(basename "$root"/boot/vmlinuz-*)
kernel=${kernel#vmlinuz-}

# stand_in PACKAGE installs one without a content: something that only its manager knows of.
stand_in() {
	rm -rf "$work/package"
	mkdir -p "$work/package/DEBIAN"
	printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: a stand-in\n' "$1" >"$work/package/DEBIAN/control"
	dpkg-deb --root-owner-group --build "$work/package" "$work/package.deb"
	dpkg --root="$root" --install "$work/package.deb"
	rm -r "$work/package" "$work/package.deb"
}

configure() {
	# The driver of bare metal, and what containers reach a GPU with.
	stand_in nvidia-driver
	stand_in nvidia-container-toolkit
	cp -a --no-preserve=ownership "$here/rootfs/." "$root/"
	chroot "$root" chown -R root:root /etc /srv /usr/local
	echo metal1 >"$root/etc/hostname"
	echo '127.0.0.1 localhost metal1' >"$root/etc/hosts"
	{
		echo "$device / ext4 errors=remount-ro 0 1"
		[ "$firmware" = bios ] || echo "UUID=$espid /boot/efi vfat umask=0077 0 2"
	} >"$root/etc/fstab"
	# A model that takes room, as models do.
	mkdir -p "$root/srv/models/resnet/1"
	head -c 8M /dev/urandom >"$root/srv/models/resnet/1/model.plan"
	mkdir -p "$root/root/.ssh" "$root/boot/efi" "$root/boot/grub" "$root/var/lib/load"
	cp "$work/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
	chmod 700 "$root/root/.ssh"
	cp "$root/etc/ssh/ssh_host_ed25519_key.pub" "$work/host_key.pub"
	systemctl --root="$root" --quiet enable load model-server arrived nvidia-persistenced nvidia-fabricmanager ssh
	chroot "$root" update-initramfs -u -k "$kernel"
	cat >"$root/boot/grub/grub.cfg" <<-GRUB
		set timeout=0
		menuentry 'Debian GNU/Linux' --class debian --class gnu-linux {
			search --no-floppy --fs-uuid --set=root $rootid
			linux /boot/vmlinuz-$kernel root=$device ro console=tty0 console=ttyS0
			initrd /boot/initrd.img-$kernel
		}
	GRUB
	cat >"$work/early.cfg" <<-GRUB
		search.fs_uuid $rootid root
		set prefix=(\$root)/boot/grub
		normal
	GRUB
}

# partition makes the disks, and what the system's pieces lie in.
partition() {
	rm -f "$disk" "$more"
	truncate -s $((size * 512)) "$disk"
	if [ "$firmware" = bios ]; then
		sfdisk --quiet "$disk" <<<"label: dos
			start=$mib, type=83, bootable"
		return
	fi
	truncate -s $((moresize * 512)) "$more"
	sfdisk --quiet "$disk" <<<"label: gpt
		start=$first, size=$((last - first + 1)), type=uefi
		start=$((last + 1)), size=$((2269 * mib)), type=lvm"
	# In libguestfs's appliance, as LVM wants block devices. What udev knows of them there may
	# come late; it is waited for, as LVM has missed a disk that udev was looking at.
	local seen='--nohints --config devices/obtain_device_list_from_udev=0'
	LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg guestfish --format=raw -a "$disk" -a "$more" <<-FISH
		run
		pvcreate /dev/sda2
		pvcreate /dev/sdb
		vgcreate system "/dev/sda2 /dev/sdb"
		debug sh "udevadm settle --timeout=300"
		debug sh "lvm lvcreate $seen --name root --extents 64 --zero n --wipesignatures n system /dev/sdb"
		debug sh "lvm lvextend $seen --extents +567 system/root /dev/sda2"
	FISH
}

# system puts the file system where its pieces are.
system() {
	local piece sum=0
	for piece in "${pieces[@]}"; do
		read -r _ _ length <<<"$piece"
		sum=$((sum + length))
	done
	truncate -s $((sum * 512)) "$work/part.img"
	mke2fs -q -F -t ext4 -U "$rootid" -L root -d "$root" "$work/part.img"
	sum=0
	for piece in "${pieces[@]}"; do
		read -r file start length <<<"$piece"
		dd if="$work/part.img" of="$file" bs=1M skip=$((sum / mib)) seek=$((start / mib)) count=$((length / mib)) conv=sparse,notrunc status=none
		sum=$((sum + length))
	done
	rm "$work/part.img"
}

# number VALUE BYTES: little-endian, as the firmware reads it.
number() {
	local i v=$1
	for ((i = 0; i < $2; i++)); do
		printf %b "\\x$(printf %02x $((v & 255)))"
		v=$((v >> 8))
	done
}

# poke FILE OFFSET: writes standard input into the file.
poke() { dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# GRUB's first sector and its core find each other by sector numbers, which grub-install
# writes where it sees a disk. There is none to be seen here.
bios_loader() {
	chroot_mkimage i386-pc core.img biosdisk "${table[@]}" ext2 search search_fs_uuid normal linux echo test configfile
	cp "$modules/i386-pc/boot.img" "$work/boot.img"
	number "$first" 8 | poke "$work/boot.img" $((0x5c))
	number $((first + 1)) 8 | poke "$work/core.img" $((0x1f4))
	# The partition table lies behind the first 440 bytes.
	head -c 440 "$work/boot.img" | poke "$disk" 0
	dd if="$work/core.img" of="$disk" bs=512 seek="$first" conv=notrunc status=none
}

uefi_loader() {
	chroot_mkimage x86_64-efi BOOTX64.EFI "${table[@]}" ext2 fat search search_fs_uuid normal linux echo test configfile
	truncate -s $(((last - first + 1) * 512)) "$work/esp.img"
	mkfs.fat -F 32 -i "${espid/-/}" "$work/esp.img" >/dev/null
	mmd -i "$work/esp.img" ::/EFI ::/EFI/BOOT ::/EFI/debian
	mcopy -i "$work/esp.img" "$work/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI
	mcopy -i "$work/esp.img" "$work/BOOTX64.EFI" ::/EFI/debian/grubx64.efi
	# As grub-install leaves it; virt-v2v knows by it what boots the system.
	cat >"$work/esp.cfg" <<-GRUB
		search.fs_uuid $rootid root
		set prefix=(\$root)'/boot/grub'
		configfile \$prefix/grub.cfg
	GRUB
	mcopy -i "$work/esp.img" "$work/esp.cfg" ::/EFI/debian/grub.cfg
	dd if="$work/esp.img" of="$disk" bs=512 seek="$first" conv=sparse,notrunc status=none
	rm "$work/esp.img"
}

# chroot_mkimage FORMAT FILE MODULE…: with the GRUB of the system itself.
chroot_mkimage() {
	local format=$1 file=$2
	shift 2
	cp "$work/early.cfg" "$root/tmp/early.cfg"
	chroot "$root" grub-mkimage -d "/usr/lib/grub/$format" -O "$format" -p /boot/grub -c /tmp/early.cfg -o "/tmp/$file" "$@"
	mv "$root/tmp/$file" "$work/$file"
	rm "$root/tmp/early.cfg"
}

configure
partition
system
"${firmware}_loader"
