// Package lint holds the rules of the house that no linter knows: each test is
// one rule, and reads the tree as it is. It also proves that the linters'
// configuration refuses what it is meant to refuse.
package lint
