// Package block copies a disk of a running server to a mirror on this host,
// again and again until little changes, and proves that both are equal. It
// knows neither ssh nor migrations: whoever uses it brings connections.
//
// # The pass
//
// There is one kind of pass. The puller names chunks and the SHA-256 of each
// that it holds; the server reads every named chunk once, hashes it, and sends
// those that differ. A first copy is a pass that holds nothing, a resumed copy
// is a pass that holds what is durable, and a warm re-sync is a pass that holds
// nearly all. The server keeps nothing between two requests.
//
// A request lists chunks by index and not as a range, 40 bytes each, so that a
// set of dirty chunks scattered over the disk costs one round trip too. Chunks
// are answered in the order of the request: whatever stands before the last
// frame is settled, so a cut at any byte costs the chunk it fell into.
//
// HTTP/1.1 carries it (a server of one connection, see Serve); parallel
// connections are parallel sessions. An answer is a stream of frames, see
// wire.go. Its end is a frame of its own and so is an error in its middle.
//
// # What the server promises
//
// It opens disks for reading only, and only those that it was started with; the
// name in a request is looked up and is never a path. Block devices are read
// past the page cache: it keeps the source's memory for the source, and what a
// mounted filesystem writes does not go through the cache of its device, so
// that a second pass through that cache could read what the first one left
// there. A device that refuses O_DIRECT is therefore an error. A file is read
// through the cache, where O_DIRECT does not work, and dropped from it after.
// A disk of another host is read by whoever lends it, see Disk.Reader.
// A chunk that cannot be read is told with its byte offset, never sent as zeros.
// A chunk that is written while it is read may be sent half old and half new.
// Its hash is of the bytes that were sent, so the next pass sees that it differs.
//
// # What the mirror promises
//
// A record of the map says that the chunk with this hash is on the disk, and
// will be after a loss of power. For that, in this order:
//
//  1. the record of a chunk that is about to be overwritten is cleared, fdatasync of the map;
//  2. the data is written, fdatasync of the data;
//  3. the new records are written, fdatasync of the map.
//
// Without the first step a crash between the others leaves an old hash beside
// new or torn data, which stays unseen if the source goes back to the old
// content. Steps 1 and 3 are shared by all chunks that wait for them. After a
// sync that failed nothing more is recorded: the kernel tells such an error
// once, and a second sync would succeed with the data lost.
//
// # What is ahead of a mirror
//
// A mirror that somebody else reads, a VM that is tried, is pulled to all the same: what has
// changed goes to a sparse file beside it, which has a map of its own and is written in the same order.
// A chunk is held as that map says, or else as the mirror's does, of which
// not a byte changes. So there is no state to go wrong: without what is ahead, or with a
// part of it, the mirror is one that is older. Fold brings it into the mirror, in that order once more, and takes from what is
// ahead only what the mirror holds. Nobody opens the mirror before that: a chunk that was pulled to it
// would be followed by an older one, of which nobody tells.
//
// # What the puller promises
//
// Nothing of a source is trusted: lengths, order and numbers are held against
// the request, every chunk is hashed again before it is written, and memory is
// bounded by connections times chunk size. The one thing a source can lie about
// is the content of its own disk.
package block
