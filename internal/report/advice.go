// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Advice is what the image's author can change.
type Advice struct {
	Layer int    // that is to be changed; the bottom one is 0
	Bytes uint64 // that it would save in the layers, at most
	Text  string
}

const (
	mostAdvice = 10
	// What saves less is not worth the author's time: bytes, and a part of all
	// layers.
	leastAdvice      = 1 << 20
	leastAdviceShare = 200
)

// advise looks at each layer for what is known to waste space.
func (b *builder) advise(commands []string) {
	least := max(leastAdvice, b.LayerBytes/leastAdviceShare)
	add := func(layer int, bytes uint64, format string, args ...any) {
		if bytes >= least {
			b.Advice = append(b.Advice, Advice{layer, bytes, fmt.Sprintf(format, args...)})
		}
	}
	for i := range b.Layers {
		l := &b.Layers[i]
		add(i, l.rewritten.Bytes, "It writes %s again with the content that %s already had. %s",
			count(l.rewritten.Files, "file"), theyOrIt(l.rewritten.Files), rewriteRemedy(commands[i]))
		for _, by := range slices.Sorted(maps.Keys(l.deletedBy)) {
			w := l.deletedBy[by]
			add(i, w.Bytes, "Layer %d deletes %s that this one adds: a layer cannot take back what is in another one. Delete them in the instruction that makes them%s.",
				by+1, count(w.Files, "file"), orCacheMount(commands[i]))
		}
		for _, by := range slices.Sorted(maps.Keys(l.overwrittenBy)) {
			w := l.overwrittenBy[by]
			add(i, w.Bytes, "Layer %d replaces %s that this one adds with other content, as an upgrade does. Install the newer version here, or take a base image that has it.",
				by+1, count(w.Files, "file"))
		}
		add(i, l.caches.Bytes, "It leaves %s in directories for caches and temporary files, such as /var/lib/apt/lists. Remove them at the end of the same instruction, or mount a cache there (RUN --mount=type=cache).",
			count(l.caches.Files, "file"))
		add(i, l.copies.Bytes, "It has %s with the same content as others that containers see. Link them (ln, cp -l) instead of copying them.",
			count(l.copies.Files, "file"))
	}
	slices.SortStableFunc(b.Advice, func(x, y Advice) int { return cmp.Compare(y.Bytes, x.Bytes) })
	b.Advice = b.Advice[:min(len(b.Advice), mostAdvice)]
}

func rewriteRemedy(command string) string {
	switch {
	case strings.Contains(command, "chown"), strings.Contains(command, "chmod"):
		return "Changing owner or mode copies the whole file: use COPY --chown and --chmod, or do it in the instruction that makes the files."
	case strings.Contains(command, "COPY"), strings.Contains(command, "ADD"):
		return "Copy only what changed, or copy it once."
	}
	return "A change of owner, mode or time copies the whole file: do it in the instruction that makes the files."
}

func orCacheMount(command string) string {
	if strings.Contains(command, "RUN") || strings.Contains(command, "sh -c") || command == "" {
		return ", or build in a stage of its own and copy the result (COPY --from)"
	}
	return ""
}

func count(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func theyOrIt(n uint64) string {
	if n == 1 {
		return "it"
	}
	return "they"
}
