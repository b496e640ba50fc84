#!/bin/sh
# A systemd of its own, in namespaces of its own, with a D-Bus and nothing else: in a container
# without one, and on a host, whose own is left alone. In the empty folder $1 it runs the
# program $2 … as a service; its output is in out, its exit status in status. All ends with it.
set -eu
dir=$1
shift
if [ -z "${INSIDE:-}" ]; then
	# Where control groups have two hierarchies, the newer one is beside the others.
	root=/sys/fs/cgroup
	[ ! -e $root/unified ] || root=$root/unified
	group=$root/gpuvirt-test-$$
	mkdir "$group"
	trap 'find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true' EXIT
	sh -c 'echo 0 >"$1/cgroup.procs"; shift; exec env INSIDE=1 "$@"' sh "$group" \
		unshare --fork --kill-child --pid --mount --cgroup --ipc --uts "$0" "$dir" "$@" </dev/null
	exit
fi
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t proc proc /proc
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /run/dbus "$dir/units"
for target in basic sysinit sockets shutdown umount; do
	printf '[Unit]\nDefaultDependencies=no\n' >"$dir/units/$target.target"
done
printf '[Socket]\nListenStream=/run/dbus/system_bus_socket\n' >"$dir/units/dbus.socket"
cat >"$dir/units/dbus.service" <<END
[Unit]
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
END
cat >"$dir/units/test.service" <<END
[Unit]
Requires=dbus.service
After=dbus.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
Environment=GPUVIRT_TEST_UNITS=$dir
WorkingDirectory=$PWD
StandardOutput=file:$dir/out
StandardError=inherit
ExecStart=/bin/sh -c '"\$0" "\$@"; echo \$? >$dir/status' $*
END
unset INSIDE
export SYSTEMD_UNIT_PATH="$dir/units" container=other
exec /lib/systemd/systemd --system --unit=test.service --log-target=console --show-status=no
