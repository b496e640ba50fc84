// Package dirty marks which chunks of a disk are written, while a server runs: a pass of a
// warm migration then reads those and no others, however large the disk is. It runs on the
// source as root. A program of eBPF is called by the kernel for each request that a disk has
// carried out, and sets a byte per chunk in memory. There is no module, nothing is compiled,
// mounted or written, and it ends with the process.
//
// # What holds
//
// Start returns; then the disk is read for the first time; Take returns chunks; then those
// are read; and so on. Whoever reads in this order has, in the end, read each chunk after the
// last write to it that was reported as done before the last Take. In particular:
//
//   - A write is marked when the disk has done it, and before whoever waits for it is told.
//     What was on its way when Start or Take was called is in a later Take.
//   - A mark is cleared and read in one. What comes in between is in the next Take.
//   - What file systems, partitions, device-mapper, md and bcache write arrives at the disk and
//     is marked there, also what they discard, and what is merged, split or sent again.
//   - A write that has failed is marked as if it had not.
//
// Chunks may be told that were not written. A request of up to eight chunks costs its own
// chunks. A longer one is rounded outwards, by less than what it has itself and a quarter more.
//
// Reads must come from the disk: O_DIRECT, or after dropping the block device's own cache,
// which neither file systems nor partitions keep up to date.
//
// # Where it does not hold
//
// Start refuses with ErrUnsupported: kernels before 5.5 or without a description of their
// types (/sys/kernel/btf/vmlinux), real-time kernels, processes that may not load programs;
// partitions, disks with zones, and disks whose driver makes no requests (device-mapper, md,
// zram, pmem), for which the disks below them are meant. An NVMe disk with several paths is
// known by the names of its paths.
//
// Take says ErrLost: something was sent past the block layer that may have written (SG_IO,
// NVMe passthrough with data to the disk), or beyond the size that was given, or on an NVMe
// path that is new. The disk is then hashed as a whole after this Take, and tracking goes on.
//
// Take says ErrGone: the disk was removed, replaced or resized. A process that was started
// again has another ID, and what it has not seen is for a hash pass as well.
//
// Not seen, and told by nobody: commands without data that change the contents all the
// same (FORMAT, SANITIZE, write zeroes as passthrough), another machine that writes to a
// shared disk, a loop device's file that is written directly, and what a controller does by
// itself. The hash pass before the end is the proof.
package dirty
