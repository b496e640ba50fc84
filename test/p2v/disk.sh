#!/bin/bash
# Turn the root file system into a disk that boots, without mounting anything.
# Usage: disk.sh WORK bios|uefi, where WORK holds root/ and id_ed25519.pub; puts
# FIRMWARE.img and host_key.pub into it.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$1 firmware=$2
root=$work/root
disk=$work/$firmware.img
modules=$root/usr/lib/grub

# Sectors of 512 bytes: a small partition for the loader, then the system.
declare -A first=([boot]=2048 [root]=69632) last=([boot]=69631 [root]=5242846)
size=5242880 # 2.5 GiB
rootid=6d0f6bb3-6f3c-4d2a-9f6a-51d1c6f0a7b1
espid=5A7C-10E2
kernel=$(basename "$root"/boot/vmlinuz-*)
kernel=${kernel#vmlinuz-}

configure() {
	cp -a --no-preserve=ownership "$here/rootfs/." "$root/"
	chroot "$root" chown -R root:root /etc /srv /usr/local
	echo metal1 >"$root/etc/hostname"
	echo '127.0.0.1 localhost metal1' >"$root/etc/hosts"
	{
		echo "UUID=$rootid / ext4 errors=remount-ro 0 1"
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
			linux /boot/vmlinuz-$kernel root=UUID=$rootid ro console=tty0 console=ttyS0
			initrd /boot/initrd.img-$kernel
		}
	GRUB
	cat >"$work/early.cfg" <<-GRUB
		search.fs_uuid $rootid root
		set prefix=(\$root)/boot/grub
		normal
	GRUB
}

system() {
	truncate -s $(((last[root] - first[root] + 1) * 512)) "$work/part.img"
	mke2fs -q -F -t ext4 -U "$rootid" -L root -d "$root" "$work/part.img"
	dd if="$work/part.img" of="$disk" bs=1M seek=$((first[root] / 2048)) conv=sparse,notrunc status=none
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
	chroot_mkimage i386-pc core.img biosdisk part_gpt ext2 search search_fs_uuid normal linux echo test configfile
	cp "$modules/i386-pc/boot.img" "$work/boot.img"
	number "${first[boot]}" 8 | poke "$work/boot.img" $((0x5c))
	number $((first[boot] + 1)) 8 | poke "$work/core.img" $((0x1f4))
	# The partition table lies behind the first 440 bytes.
	head -c 440 "$work/boot.img" | poke "$disk" 0
	dd if="$work/core.img" of="$disk" bs=512 seek="${first[boot]}" conv=notrunc status=none
}

uefi_loader() {
	chroot_mkimage x86_64-efi BOOTX64.EFI part_gpt ext2 fat search search_fs_uuid normal linux echo test configfile
	truncate -s $(((last[boot] - first[boot] + 1) * 512)) "$work/esp.img"
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
	dd if="$work/esp.img" of="$disk" bs=512 seek="${first[boot]}" conv=sparse,notrunc status=none
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
rm -f "$disk"
truncate -s $((size * 512)) "$disk"
case $firmware in
bios) kind=ef02 ;;
uefi) kind=ef00 ;;
esac
sgdisk -n "1:${first[boot]}:${last[boot]}" -t "1:$kind" -n "2:${first[root]}:${last[root]}" -t 2:8300 "$disk"
system
"${firmware}_loader"
