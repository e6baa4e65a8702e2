// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func TestMessagesAsJSON(t *testing.T) {
	var b strings.Builder
	err := printJSON(&b, &adminapi.ReportResponse{
		LayerBytes:     1 << 63,
		Efficiency:     0.5,
		Waste:          []*adminapi.Waste{{Cause: "compression", Bytes: -1}},
		DuplicatePaths: []*adminapi.DuplicatePath{{Path: []byte("/<a>&\xff\n")}},
		Tree:           &adminapi.Directory{},
	})
	want := `{"layer_bytes":9223372036854775808,"visible_bytes":0,"distinct_bytes":0,"own_bytes":0,"efficiency":0.5,` +
		`"waste":[{"cause":"compression","bytes":-1,"files":0}],"duplicate_paths":[{"path":"/<a>&` + "\uFFFD" + `\n","count":0,"bytes":0}],` +
		`"duplicate_contents":[],"layers":[],"advice":[],"tree":{"name":"","bytes":0,"files":0,"duplicate_bytes":0,"shadowed_bytes":0,"directories":[]}}` + "\n"
	if err != nil || b.String() != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, b.String(), want)
	}
}
