package gpu

import "context"

// A Backend makes and removes the partitions of one kind. Its calls are
// idempotent: making a partition that is there with the same profile and parent,
// or removing one that is gone, succeeds. Every call reads the machine afresh.
type Backend interface {
	// GPUs lists the GPUs that this backend could cut, sorted by ID.
	GPUs(ctx context.Context) ([]GPU, error)
	// Profiles lists what a GPU can make, with how many more fit now.
	Profiles(ctx context.Context, id ID) ([]Profile, error)
	// Partitions lists what is there, foreign ones too.
	Partitions(ctx context.Context, id ID) ([]Partition, error)
	// Make makes the partition want describes (ID, GPU, Parent, Profile, Native) and
	// returns it as read back. A failed Make leaves nothing behind.
	Make(ctx context.Context, want Partition) (Partition, error)
	// Remove removes a partition and waits until it is gone. The caller has made
	// sure that it is ours and that nobody uses it.
	Remove(ctx context.Context, p Partition) error
}
