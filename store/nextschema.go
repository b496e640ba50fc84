//go:build nextschema

package store

import "go.etcd.io/bbolt"

// next is a migration of a version to come, for the lab: it upgrades to one and goes back.
func next() []migration { return []migration{func(*bbolt.Tx) error { return nil }} }
