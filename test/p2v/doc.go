//go:build p2v

// Package p2v moves an emulated physical server into a VM, with the programs that do it on
// a real host. The server is Debian on an NVMe disk, with BIOS or UEFI, with what years of
// a bare-metal GPU leave behind, and with a load that writes. README.md says what is real.
package p2v
