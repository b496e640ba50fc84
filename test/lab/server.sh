# shellcheck shell=bash disable=SC2154
# The disk of a small physical server, made of what the hypervisor's root file system has,
# without mounting anything. pack.sh reads this file: the functions and variables are its.
#
# Result: server.img in the folder of the inner guest, a whole disk (MBR, GRUB, ext4),
# server-initrd and server-cmdline, with which the server starts without GRUB, and
# server_key, server_host.pub: the key that its root accepts, and the one that it shows.

# A megabyte before the only partition is GRUB's.
server_first=2048 # sector
server_size=80    # MiB, of the file system

# server_programs PATH...: programs, and the libraries that they need.
server_programs() {
	local path library
	for path in "$@"; do
		install -D -m 755 "$root$path" "$server$path"
		chroot "$root" ldd "$path" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
			[ -e "$server$library" ] || install -D -m 755 "$root$library" "$server$library"
		done
	done
}

# number VALUE BYTES: little-endian, as the firmware reads it.
number() {
	local i v=$1
	for ((i = 0; i < $2; i++)); do
		printf %b "\\x$(printf %02x $((v & 255)))"
		v=$((v >> 8))
	done
}

server_root() {
	local name file
	mkdir -p "$server"/{boot/grub,dev,etc,proc,root/.ssh,run,srv,sys,tmp,usr/bin,usr/lib,usr/lib64,usr/sbin,usr/lib/modules/lab,var/log}
	for name in bin sbin lib lib64; do ln -s "usr/$name" "$server/$name"; done
	ln -s /run "$server/var/run"
	server_programs /usr/bin/{dash,cat,stat,wc,chmod,cp,ln,mkdir,mv,rm,rmdir,touch,id,uname,ls,date,dd,sync,sleep,tail,sha256sum,find,sort,xargs,head,systemctl} \
		/usr/sbin/{sshd,qemu-ga}
	for file in "$root"/usr/lib/openssh/sshd-*; do
		[ ! -e "$file" ] || server_programs "${file#"$root"}"
	done
	ln -s dash "$server/usr/bin/sh"
	cp "$initrd/bin/busybox" "$server/usr/bin/busybox"
	ln -s ../bin/busybox "$server/usr/sbin/init"
	modules_for virtio_net virtio_console | while read -r file; do
		name=$(printf %02d "$(find "$server/lib/modules/lab" -name '*.ko' | wc -l)")
		unpacked_module "$root$file" "$server/lib/modules/lab/$name-$(basename "${file%%.ko*}").ko"
	done
	cp -a --no-preserve=ownership "$here/server/root/." "$server/"
	cp -L "$root/etc/os-release" "$root/etc/nsswitch.conf" "$server/etc/"
	printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' >"$server/etc/passwd"
	printf '%s\n' 'root:x:0:' 'nogroup:x:65534:' >"$server/etc/group"
	printf '%s\n' 'root:*:19000:0:99999:7:::' 'sshd:!:19000::::::' >"$server/etc/shadow"
	echo srv >"$server/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 srv\n' >"$server/etc/hosts"
	echo "UUID=$server_id / ext4 noatime 0 1" >"$server/etc/fstab"
	tr -d - </proc/sys/kernel/random/uuid >"$server/etc/machine-id"
	# What its work is about.
	for name in 1 2 3 4; do head -c 2M /dev/urandom >"$server/srv/model-$name"; done
	ssh-keygen -q -t ed25519 -N '' -C srv -f "$server/etc/ssh/ssh_host_ed25519_key"
	ssh-keygen -q -t ed25519 -N '' -C gpuvirt-lab -f "$work/server_key"
	mv "$work/server_key.pub" "$server/root/.ssh/authorized_keys"
	chmod 700 "$server/root" "$server/root/.ssh"
}

server_boot() {
	local early=$work/server-early file
	mkdir -p "$early"/{bin,modules,proc,sys,dev,root}
	cp "$initrd/bin/busybox" "$early/bin/busybox"
	modules_for virtio_pci virtio_blk nvme crc32c ext4 | while read -r file; do
		unpacked_module "$root$file" "$early/modules/$(basename "${file%%.ko*}").ko"
		echo "/modules/$(basename "${file%%.ko*}").ko" >>"$early/modules/order"
	done
	install -m 755 "$here/server/early-init" "$early/init"
	# GRUB reads slowly through the firmware: longer than the kernel takes to unpack this.
	cpio_of "$early" "$root/usr/local/share/lab/server-initrd"
	zstd -q -10 "$root/usr/local/share/lab/server-initrd" -o "$server/boot/initrd.img"
	cp "$root/boot/vmlinuz-$release" "$server/boot/vmlinuz-$release"
	sed -e "s/KERNEL/$release/" -e "s/ROOT/$server_id/" "$here/server/grub.cfg" >"$server/boot/grub/grub.cfg"
	sed -n 's/^\tlinux [^ ]* //p' "$server/boot/grub/grub.cfg" >"$root/usr/local/share/lab/server-cmdline"
	printf '%s\n' 'set root=(hd0,msdos1)' "set prefix=(hd0,msdos1)/boot/grub" normal >"$root/tmp/early.cfg"
	chroot "$root" grub-mkimage -d /usr/lib/grub/i386-pc -O i386-pc -p /boot/grub -c /tmp/early.cfg -o /tmp/core.img \
		biosdisk part_msdos ext2 normal linux configfile
}

# server_disk FILE: GRUB's first sector looks for the rest of it in the next one.
server_disk() {
	local part=$work/server.part
	truncate -s "${server_size}M" "$part"
	mke2fs -q -F -t ext4 -U "$server_id" -d "$server" -m 0 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 "$part"
	truncate -s "$((server_first * 512))" "$1"
	{
		head -c 440 "$root/usr/lib/grub/i386-pc/boot.img"
		printf 'lab\0\0\0'
		printf '\x80\xfe\xff\xff\x83\xfe\xff\xff'
		number "$server_first" 4
		number "$((server_size * 2048))" 4
		head -c 48 /dev/zero
		printf '\x55\xaa'
	} | dd of="$1" conv=notrunc status=none
	dd if="$root/tmp/core.img" of="$1" bs=512 seek=1 conv=notrunc status=none
	dd if="$part" of="$1" bs=1M seek=$((server_first / 2048)) conv=notrunc,sparse status=none
	truncate -s "$((server_first * 512 + (server_size << 20)))" "$1"
	rm "$part" "$root/tmp/core.img" "$root/tmp/early.cfg"
}

server=$work/server
server_id=$(cat /proc/sys/kernel/random/uuid)
server_root
server_boot
server_disk "$root/usr/local/share/lab/server.img"
install -m 600 "$work/server_key" "$root/usr/local/share/lab/server_key"
cp "$server/etc/ssh/ssh_host_ed25519_key.pub" "$root/usr/local/share/lab/server_host.pub"
