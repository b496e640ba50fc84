//go:build lab

// Package lab boots a hypervisor in an emulated machine and drives it: a
// Debian with a real kernel and mdev bus, real systemd and real libvirt, whose
// guests run under nested KVM. It owns the machine from Start to Close and
// leaves no process behind. README.md says what is real in it and what is not.
//
// The image comes from build.sh, the daemon under test from the working
// tree's bin folder. Everything goes through the system's qemu and ssh.
package lab
