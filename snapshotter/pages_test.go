// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// What a container has read is cached once, and can still be read.
func TestPagesOfThePackAreDroppedWhenTheyWereRead(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeFile)
	n.close()
	n.cfg.settled = time.Hour
	n.open()
	content := noise(40<<20, 1)
	top := n.pull("ns/1", image{treetest.Layer(treetest.File("big", content))})
	root, undo := n.view(top)
	defer undo()
	f, err := os.OpenFile(n.pack.Path(), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	must(t, fadviseDontNeed(f))
	cached := func() int64 {
		var held unix.Cachestat_t
		must(t, unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &held, 0))
		return int64(held.Cache) * int64(os.Getpagesize())
	}
	read := func() {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(root, "big")); err != nil || string(b) != content {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	read()
	held := cached()
	if held < 32<<20 {
		t.Skipf("%d bytes of the pack are cached after %d were read: this kernel does not cache them", held, len(content))
	}
	if dropped, err := n.pack.TrimPages(trimFrom, time.Hour); dropped != 0 || err != nil || cached() < held {
		t.Errorf("of a pack that was changed just now, %d bytes were dropped, %v", dropped, err)
	}
	if dropped, err := n.pack.TrimPages(held+1, 0); dropped != 0 || err != nil || cached() < held {
		t.Errorf("with %d bytes cached, %d were dropped, %v", held, dropped, err)
	}
	if dropped, err := n.pack.TrimPages(trimFrom, 0); dropped < held || err != nil || cached() > held/10 {
		t.Errorf("%d bytes were cached, %d dropped, %d are left, %v", held, dropped, cached(), err)
	}
	read()
	// And by itself, some time after the last change.
	undo()
	n.close()
	n.cfg.settled = time.Millisecond
	n.open()
	waitFor(t, "the pack's pages to be dropped", func() error {
		if held := cached(); held >= trimFrom {
			return fmt.Errorf("%d bytes are cached", held)
		}
		return nil
	})
}
