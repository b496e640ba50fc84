//go:build !nextschema

package store

// migrations are all there ever were, in order: the first brings schema 1 to 2.
// Never change one that was released. A new kind of record needs none if layOut
// makes its bucket, but then an old version would not know that it is there.
func migrations() []migration { return nil }
