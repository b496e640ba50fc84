// Package operationtest tests stores and the engine of package operation
// together: it runs operations on a small pretend machine, kills the process at
// any store write or hardware move, starts another on what is left, and checks
// that every operation ended as none or complete.
package operationtest
