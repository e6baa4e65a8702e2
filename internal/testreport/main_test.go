// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     string
		failed bool
		want   []string
		not    []string
	}{
		{
			name: "all pass",
			in: `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1}
{"Action":"pass","Package":"p","Elapsed":1.25}
`,
			want: []string{"ok   p: 1 passed, 0 failed, 0 skipped, 1.2 s\n", "\n1 passed, 0 failed, 0 skipped\n"},
			not:  []string{"chatter"},
		}, {
			name: "one fails, one is skipped",
			in: `{"Action":"output","Package":"p","Test":"TestA","Output":"want 1\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:1: no loop devices\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"pass","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p"}
`,
			failed: true,
			want:   []string{"FAIL p TestA\nwant 1\n", "SKIP p TestB\n    b_test.go:1: no loop devices\n", "\n1 passed, 1 failed, 1 skipped\n"},
			not:    []string{"=== RUN"},
		}, {
			name: "does not build",
			in: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:1: undefined: x\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}
`,
			failed: true,
			want:   []string{"undefined: x", "\n0 passed, 1 failed, 0 skipped\n"},
		}, {
			name: "TestMain fails",
			in: `{"Action":"output","Package":"p","Output":"set-up: no root\n"}
{"Action":"fail","Package":"p"}
`,
			failed: true,
			want:   []string{"set-up: no root", "0 passed, 1 failed"},
		}, {
			name: "a test runs out of time",
			in: `{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestC","Output":"=== PAUSE TestC\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"panic: test timed out after 1s\n"}
{"Action":"fail","Package":"p"}
`,
			failed: true,
			want:   []string{"FAIL p TestB, which did not end\npanic: test timed out after 1s\n", "\n1 passed, 1 failed, 0 skipped\n"},
			not:    []string{"TestC"},
		}, {
			name:   "the run breaks off",
			in:     `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n",
			failed: true,
			want:   []string{"FAIL p: the run ended before its tests did"},
		}, {
			name: "packages without tests are not worth a line",
			in: `{"Action":"skip","Package":"q"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`,
			not: []string{"q"},
		}, {
			name:   "no tests at all",
			in:     "go: no such module\n",
			failed: true,
			want:   []string{"go: no such module\n", "0 passed, 0 failed, 0 skipped\n"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			failed, err := report(strings.NewReader(c.in), &out)
			if err != nil {
				t.Fatal(err)
			}
			if failed != c.failed {
				t.Errorf("failed is %v, want %v", failed, c.failed)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("got\n%s\nwant it to contain %q", &out, want)
				}
			}
			for _, not := range c.not {
				if strings.Contains(out.String(), not) {
					t.Errorf("got\n%s\nwant it without %q", &out, not)
				}
			}
		})
	}
}
