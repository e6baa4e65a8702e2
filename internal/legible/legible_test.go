// SPDX-License-Identifier: Apache-2.0

package legible

import (
	"math"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestNamesShowWhatCannotBeSeen(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "",
		"/usr/größe 大小":         "/usr/größe 大小",
		"</script>":             "</script>",
		"a\nb":                  `"a\nb"`,
		"\x1b[31mred":           `"\x1b[31mred"`,
		"txt.\u202eexe":         `"txt.\u202eexe"`,
		"no\u00a0break":         `"no\u00a0break"`,
		"bytes \xff\x9b of C1":  `"bytes \xff\x9b of C1"`,
		"a real \uFFFD is seen": "a real \uFFFD is seen",
	} {
		if got := Name(text); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

func TestSizesHaveDecimalUnits(t *testing.T) {
	for bytes, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 2_258_000_000: "2.3 GB",
		math.MaxUint64: "18.4 EB",
	} {
		if got := Size(bytes); got != want {
			t.Errorf("%d: got %q, want %q", bytes, got, want)
		}
	}
	if got := SignedSize(math.MinInt64); got != "-9.2 EB" {
		t.Errorf("smallest: got %q", got)
	}
}

func TestCommandsAreThoseOfTheDockerfile(t *testing.T) {
	for text, want := range map[string]string{
		"/bin/sh -c #(nop)  CMD [\"sh\"]":                 `CMD ["sh"]`,
		"/bin/sh -c apt-get  update\t&&  true":            "RUN apt-get update && true",
		"RUN /bin/sh -c make # buildkit":                  "RUN make",
		"COPY . /src # buildkit":                          "COPY . /src",
		"RUN echo \x1b[2J":                                `"RUN echo \x1b[2J"`,
		"RUN a \u2028 b":                                  "RUN a b",
		"RUN |1 A=b /bin/sh -c RUN /bin/sh -c twice here": "RUN |1 A=b /bin/sh -c RUN twice here",
	} {
		if got := Command(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, seed := range []string{"", "plain", "a\x00b", "\xff", "\u202e", "\"quoted\""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, shown := range []string{Name(text), Command(text), Digest(text)} {
			if !utf8.ValidString(shown) || strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q: %q cannot be seen", text, shown)
			}
		}
	})
}
