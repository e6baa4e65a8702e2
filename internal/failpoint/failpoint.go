// SPDX-License-Identifier: Apache-2.0

// Package failpoint owns the points at which a test kills the process: right
// after each effect on the disk, on mounts and on the metastore.
//
//	effect ──Hit("index.rename")──▶ go test -tags failpoints: counted, listed, maybe SIGKILL
//	                            └─▶ any other build: nothing
//
// It is how invariant 4 of the design is tested: whatever the last effect was
// before the process died, a start makes up for it. Syncs are no effects here:
// what was written survives the process with or without them.
package failpoint
