// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/squash-snapshotter/squash/internal/legible"

// printable returns text as it may be written to a terminal: names come from images and may hold anything.
func printable(text string) string { return legible.Name(text) }

// size returns a number of bytes for people.
func size(bytes uint64) string { return legible.Size(bytes) }

// plural returns "1 thing" or "n things", "1 entry" or "n entries".
func plural(n uint64, thing string) string { return legible.Plural(n, thing) }
