// Package assess judges an inspection of a physical server: what uses its GPUs, what stands
// in the way of moving it into a VM, how much of a GPU it needs, which partition of this
// host is enough, and what has to change in the guest. It only reasons: it does no I/O, has
// no clock, and gives the same answer whatever the order of a report's lists. Every answer
// says in words what it rests on, so that a person can argue with it.
//
// Three rules run through it. Unknown is not free: what could not be seen or measured never
// counts as "none" or as "enough". What was rejected is listed with the reason. Texts of the
// source are only quoted, as evidence, shortened and few: a report comes from a machine that
// nobody here trusts.
//
// Sizes are bytes, shares are from 0 to 1, SMs are streaming multiprocessors.
package assess
