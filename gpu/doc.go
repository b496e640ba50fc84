// Package gpu is the vocabulary of gpuvirt: what a GPU, a profile, a partition,
// a VM and an assignment are, which kinds of error there are, and what a backend
// must do. It holds no behaviour that touches a machine and imports only the
// standard library, so that every other package can speak it.
package gpu
