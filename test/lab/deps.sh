#!/bin/bash
# Install what the lab needs on a bare Debian 12 or 13. Does nothing, and needs
# no network, when all of it is there.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# QEMU before 8.1 translates code that another virtual CPU is just patching,
# and keeps the result: the kernel in the lab then dies of a stray int3 sooner
# or later. Debian 12 has a good one in its backports.
need=8.1

packages=(
	mmdebstrap debian-archive-keyring e2fsprogs cpio kmod xz-utils zstd tar
	openssh-client qemu-system-x86 seabios
)
missing=()
for package in "${packages[@]}"; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] || missing+=("$package")
done
have=$(dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null || true)
if [ ${#missing[@]} = 0 ] && dpkg --compare-versions "${have#*:}" ge "$need"; then
	exit 0
fi

if [ "$(id -u)" != 0 ]; then
	echo "lab: cannot install ${missing[*]:-a newer qemu-system-x86}: run as root" >&2
	exit 1
fi
# Not beside hack/bootstrap: apt does not wait for the lists of packages.
mkdir -p "$repo/.cache"
exec 9>"$repo/.cache/bootstrap.lock"
flock 9
export DEBIAN_FRONTEND=noninteractive
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
backports=()
if [ "$codename" = bookworm ]; then
	echo 'deb http://deb.debian.org/debian bookworm-backports main' \
		>/etc/apt/sources.list.d/gpuvirt-lab-backports.list
	backports=(qemu-system-x86/bookworm-backports qemu-system-common/bookworm-backports
		qemu-system-data/bookworm-backports seabios/bookworm-backports)
fi
apt-get -qq update
# Named with their release, the packages of the backports are upgraded, too,
# where an older one is installed.
apt-get -qq install -y --no-install-recommends "${packages[@]}" "${backports[@]}"
