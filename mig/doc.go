// Package mig cuts NVIDIA cards into GPU instances.
//
// What is here so far is the planning: pure functions that know neither NVML nor
// the store. A card is described by its profiles as the driver states them; no
// width, no profile and no number of instances is built in.
package mig
