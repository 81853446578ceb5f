//go:build race

package reconcile_test

// slowdown is by how much the race detector slows the simulation down.
const slowdown = 10
