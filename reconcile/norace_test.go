//go:build !race

package reconcile_test

const slowdown = 1
