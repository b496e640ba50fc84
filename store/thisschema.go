//go:build !nextschema

package store

// next are migrations of a version to come: there are none.
func next() []migration { return nil }
