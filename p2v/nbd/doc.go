// Package nbd reads disks that a server exports by the NBD protocol, such as a rescue system
// on a physical server that is off otherwise. It only reads, and needs neither the kernel's
// NBD nor a device.
//
// It speaks fixed newstyle with TLS by NBD_OPT_STARTTLS, NBD_OPT_GO, and simple replies: one
// request at a time on each of a few connections. Structured replies and what else a server
// may offer are not asked for, so a server that sends them has failed.
//
// The server is not trusted: each length, number and handle is held against what was asked,
// answers have a time limit, and a URI with TLS is never gone on with without.
//
// Libraries were looked at first. libguestfs.org/libnbd is cgo around a C library that the
// host would need. In github.com/pojntfx/go-nbd the client is the kernel's. In
// github.com/digitalocean/go-nbd an answer may make us allocate 4 GiB, and a server that
// answers a request twice stops all others. The last two the module proxy does not serve.
package nbd
