// Package sysfs is the only way to the kernel's files: a directory tree such as
// /sys or /proc that is opened once and never left, so that a test can put
// another tree in its place.
//
// It writes as sysfs wants it: an existing file, one write(2), nothing created or
// truncated. It reads and writes with plain system calls, because drivers answer
// EAGAIN as an ordinary error, on which Go's own file type would wait for ever.
//
// A call into a driver can block for as long as the driver likes, and nothing can
// cancel it. Such a call is given up on, not ended: see Guard.
package sysfs
