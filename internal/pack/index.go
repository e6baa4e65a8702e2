// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"golang.org/x/sys/unix"
)

// indexFile is a published index file, mapped into memory. Its content is
// immutable.
type indexFile struct {
	span
	path    string
	durable bool // known to survive a power cut; guarded by Store.changing
	mapped  []byte
	records []byte // encoded, within mapped
	aux     []byte // auxiliary area, within mapped
}

func indexName(g span) string { return fmt.Sprintf("%08x-%08x.%d", g.first, g.last, g.revision) }

func parseIndexName(name string) (g span, ok bool) {
	n, err := fmt.Sscanf(name, "%x-%x.%d", &g.first, &g.last, &g.revision)
	return g, err == nil && n == 3 && name == indexName(g) && g.first <= g.last
}

// openIndexFile maps a file and checks all of it.
func openIndexFile(path string) (_ *indexFile, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < headerSize {
		return nil, fmt.Errorf("index %s: %d bytes are less than a header: %w", path, st.Size(), errDamaged)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("index %s: map: %w", path, err)
	}
	x := &indexFile{path: path, mapped: m}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	if x.span, x.records, x.aux, err = parseIndex(m); err != nil {
		return nil, fmt.Errorf("index %s: %w", path, err)
	}
	if g, ok := parseIndexName(filepath.Base(path)); !ok || g != x.span {
		return nil, fmt.Errorf("index %s: holds span %s: %w", path, indexName(x.span), errDamaged)
	}
	return x, nil
}

func (x *indexFile) close() { unix.Munmap(x.mapped) }

func (x *indexFile) len() int { return len(x.records) / recordSize }

func (x *indexFile) at(i int) []byte { return x.records[i*recordSize:][:recordSize] }

// placement decodes a record of the file, which was checked when it was opened.
func (x *indexFile) placement(r []byte) Placement {
	p, _ := decodePlacement(r, x.aux)
	return p
}

// find searches by interpolation: digests are spread evenly, so the first
// guess is a few records off, whatever the size of the file. Digests that were
// made to lie elsewhere cost no more than a bisection.
func (x *indexFile) find(d *Digest) (Placement, bool) {
	want := binary.BigEndian.Uint64(d[:])
	lo, hi := 0, x.len()
	lowKey, highKey := uint64(0), ^uint64(0)
	for guesses := 0; lo < hi && lowKey <= want && want <= highKey; guesses++ {
		mid := (lo + hi) / 2
		if guesses < 6 && hi-lo > 8 {
			// The guess splits lo..hi as want splits lowKey..highKey.
			h, l := bits.Mul64(want-lowKey, uint64(hi-lo-1))
			q, _ := bits.Div64(h, l, max(highKey-lowKey, 1))
			mid = lo + int(q)
		}
		r := x.at(mid)
		switch c := bytes.Compare(r[:DigestSize], d[:]); {
		case c == 0:
			return x.placement(r), true
		case c < 0:
			lo, lowKey = mid+1, binary.BigEndian.Uint64(r)
		default:
			hi, highKey = mid, binary.BigEndian.Uint64(r)
		}
	}
	return Placement{}, false
}

// all yields the records in the order of their digests.
func (x *indexFile) all() iter.Seq[record] {
	return func(yield func(record) bool) {
		for i := range x.len() {
			r := x.at(i)
			if !yield(record{Digest(r[:DigestSize]), x.placement(r)}) {
				return
			}
		}
	}
}

// loadIndex opens the index files of a directory, oldest first, and removes
// what a crash left behind: temporary files, and files that a merged one
// replaces. Damaged files are left where they are and reported by whole=false:
// the blocks that they speak for are then unknown.
func loadIndex(ctx context.Context, dir string) (files []*indexFile, whole bool, err error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, false, fmt.Errorf("pack: %w", err)
	}
	var present []span
	for _, e := range names {
		g, ok := parseIndexName(e.Name())
		if !ok {
			if filepath.Ext(e.Name()) == tmpSuffix {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return nil, false, fmt.Errorf("pack: remove unfinished index file: %w", err)
				}
				failpoint.Hit("index.remove")
			}
			continue
		}
		present = append(present, g)
	}
	whole = true
	defer func() {
		if err != nil {
			for _, x := range files {
				x.close()
			}
		}
	}()
	// Wide ranges first: what they cover need not even be opened.
	slices.SortFunc(present, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last), cmp.Compare(b.revision, a.revision))
	})
	for _, g := range present {
		path := filepath.Join(dir, indexName(g))
		if slices.ContainsFunc(files, func(x *indexFile) bool { return x.replaces(g) }) {
			if err := os.Remove(path); err != nil {
				return nil, false, fmt.Errorf("pack: remove replaced index file: %w", err)
			}
			failpoint.Hit("index.remove")
			continue
		}
		x, err := openIndexFile(path)
		switch {
		case errors.Is(err, errDamaged):
			whole = false
			log.G(ctx).WithError(err).Error("pack: index file is damaged; its contents are missing and no space is given back until it is repaired")
		case err != nil:
			return nil, false, fmt.Errorf("pack: %w", err)
		default:
			files = append(files, x)
		}
	}
	return files, whole, nil
}

const tmpSuffix = ".tmp"

// removeReplaced removes the files that g replaces, which are there only if
// their removal failed when they were replaced. Without g they would count
// again.
func removeReplaced(dir string, g span) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	for _, e := range names {
		if o, ok := parseIndexName(e.Name()); !ok || o == g || !g.replaces(o) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("pack: remove replaced index file: %w", err)
		}
		failpoint.Hit("index.remove")
	}
	return nil
}

// publishIndex writes sorted records as a new index file and opens it.
func publishIndex(dir string, g span, records iter.Seq[record], sync bool) (_ *indexFile, err error) {
	path := filepath.Join(dir, indexName(g))
	f, err := os.OpenFile(path+tmpSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("pack: create index file: %w", err)
	}
	defer func() {
		if err != nil {
			// Nothing may stay that a later start would take for published.
			f.Close()
			os.Remove(path + tmpSuffix)
			os.Remove(path)
		}
	}()
	failpoint.Hit("index.create")
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(writeIndex(w, g, records), w.Flush()); err != nil {
		return nil, fmt.Errorf("pack: write index file: %w", err)
	}
	failpoint.Hit("index.write")
	if sync {
		if err := f.Sync(); err != nil {
			return nil, fmt.Errorf("pack: sync index file: %w", err)
		}
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("pack: close index file: %w", err)
	}
	if err := os.Rename(path+tmpSuffix, path); err != nil {
		return nil, fmt.Errorf("pack: publish index file: %w", err)
	}
	failpoint.Hit("index.rename")
	if sync {
		if err := syncDir(dir); err != nil {
			return nil, err
		}
	}
	x, err := openIndexFile(path)
	if err != nil {
		return nil, fmt.Errorf("pack: read back: %w", err)
	}
	x.durable = sync
	return x, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("pack: sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("pack: sync directory: %w", err)
	}
	return nil
}

// inOrder yields the records of files in the order of their digests; one that
// stands in several files comes several times.
func inOrder(files []*indexFile) iter.Seq[record] {
	return func(yield func(record) bool) {
		next := make([]int, len(files))
		for {
			var least []byte
			from := -1
			for k, x := range files {
				if next[k] < x.len() {
					if d := x.at(next[k])[:DigestSize]; from < 0 || bytes.Compare(d, least) < 0 {
						least, from = d, k
					}
				}
			}
			if from < 0 {
				return
			}
			r := files[from].at(next[from])
			next[from]++
			if !yield(record{Digest(least), files[from].placement(r)}) {
				return
			}
		}
	}
}

// mergeRecords yields the records of files in order, each digest once. False: one
// has several places, because it was moved and its old blocks are not free yet;
// no record of a place may be lost then.
func mergeRecords(files []*indexFile) (merged iter.Seq[record], ok bool) {
	var last record
	first := true
	for r := range inOrder(files) {
		if !first && r.digest == last.digest && r.place != last.place {
			return nil, false
		}
		last, first = r, false
	}
	return func(yield func(record) bool) {
		var last Digest
		first := true
		for r := range inOrder(files) {
			if (first || r.digest != last) && !yield(r) {
				return
			}
			last, first = r.digest, false
		}
	}, true
}

func compareRecords(a, b record) int { return bytes.Compare(a.digest[:], b.digest[:]) }

// comparePlaces orders records as their contents lie in the pack.
func comparePlaces(a, b record) int {
	return cmp.Or(cmp.Compare(a.place.Block, b.place.Block), cmp.Compare(a.place.Offset, b.place.Offset))
}
