// SPDX-License-Identifier: Apache-2.0

//go:build !failpoints

package failpoint

import (
	"go/build"
	"os"
	"slices"
	"testing"
)

// What is shipped has neither the code nor the environment of failpoints.
func TestHitIsNothingInAnOrdinaryBuild(t *testing.T) {
	trace := t.TempDir() + "/trace"
	t.Setenv("SQUASH_FAILPOINT_TRACE", trace)
	t.Setenv("SQUASH_FAILPOINT_KILL", "0")
	if n := testing.AllocsPerRun(10, func() { Hit("name") }); n != 0 {
		t.Errorf("Hit allocates %v times", n)
	}
	if _, err := os.Lstat(trace); !os.IsNotExist(err) {
		t.Errorf("Hit wrote a trace: %v", err)
	}
	p, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Imports) > 0 || !slices.Equal(p.GoFiles, []string{"failpoint.go", "off.go"}) {
		t.Errorf("the package is made of %v and imports %v", p.GoFiles, p.Imports)
	}
}
