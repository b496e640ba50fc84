// Package virtp2v takes in servers that were started from virt-p2v's image. virt-p2v drives a
// conversion server over ssh: it types commands into a shell there, copies files to it, and has it
// reach the server's disks through forwarded ports, by NBD. Here is the other side of that, and
// nothing else of ssh: no account, no shell, no file of this host, no port that others on this
// host could reach. What is typed is compared with what virt-p2v types, files are kept in memory,
// and a forwarded port is a number in physical.xml that stands for a channel.
//
// What arrives comes from a machine that nobody here trusts, and that does not check whom it
// speaks to: stock virt-p2v takes any host key.
package virtp2v
