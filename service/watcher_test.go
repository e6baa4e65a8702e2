// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func chainID(s string) string { return digest.FromString(s).String() }

func backendName(namespace string, number int, chain string) string {
	return fmt.Sprintf("%s/%d/%s", namespace, number, chainID(chain))
}

// fakeImages plays containerd and the snapshotter for a watcher in a synctest bubble, where time is not real.
type fakeImages struct {
	*watcher
	guard     sync.Mutex
	tops      map[string][]string // namespace ─▶ chains of unpacked images
	down      bool                // containerd does not answer
	looks     int
	flattened []string
	flattener func(ctx context.Context) error // what Flatten does; nil: succeed
}

// startWatcher runs a watcher until the test ends.
func startWatcher(t *testing.T) *fakeImages {
	t.Helper()
	f := &fakeImages{watcher: newWatcher(), tops: map[string][]string{}}
	f.unpacked = func(_ context.Context, namespace string) (map[string]bool, error) {
		f.guard.Lock()
		defer f.guard.Unlock()
		f.looks++
		if f.down {
			return nil, errdefs.ErrUnavailable
		}
		tops := map[string]bool{}
		for _, chain := range f.tops[namespace] {
			tops[chainID(chain)] = true
		}
		return tops, nil
	}
	f.flatten = func(ctx context.Context, name string) error {
		f.guard.Lock()
		f.flattened = append(f.flattened, name)
		flattener := f.flattener
		f.guard.Unlock()
		if flattener == nil {
			return nil
		}
		return flattener(ctx)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return f
}

// unpack makes chains the tops of unpacked images.
func (f *fakeImages) unpack(namespace string, chains ...string) {
	f.guard.Lock()
	defer f.guard.Unlock()
	f.tops[namespace] = append(f.tops[namespace], chains...)
}

func (f *fakeImages) flattenWith(flattener func(ctx context.Context) error) {
	f.guard.Lock()
	defer f.guard.Unlock()
	f.flattener = flattener
}

func (f *fakeImages) setDown(down bool) {
	f.guard.Lock()
	defer f.guard.Unlock()
	f.down = down
}

func (f *fakeImages) looked() int {
	f.guard.Lock()
	defer f.guard.Unlock()
	return f.looks
}

// after lets d pass and everything that is due by then happen.
func after(d time.Duration) {
	time.Sleep(d) // in a bubble: time that is not real
	synctest.Wait()
}

func (f *fakeImages) expect(t *testing.T, names ...string) {
	t.Helper()
	f.guard.Lock()
	defer f.guard.Unlock()
	if !slices.Equal(f.flattened, names) {
		t.Errorf("flattened %v, want %v", f.flattened, names)
	}
}

func TestTopOfAnUnpackedImageIsFlattenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.committed(backendName("default", 1, "layer 1"))
		f.committed(backendName("default", 2, "layer 2"))
		f.unpack("default", "layer 2")
		after(firstLook - 1)
		f.expect(t)
		after(1)
		f.expect(t, backendName("default", 2, "layer 2"))
		f.heard("default")
		after(time.Hour)
		f.expect(t, backendName("default", 2, "layer 2"))
	})
}

// The label appears some time after the last commit, and no event says so.
func TestWatcherKeepsLookingForALateLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.committed(backendName("default", 1, "top"))
		after(patience / 2)
		f.expect(t)
		f.unpack("default", "top")
		after(longestNap)
		f.expect(t, backendName("default", 1, "top"))
	})
}

func TestWatcherGivesUpAndStartsAgainWithNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.committed(backendName("default", 1, "top"))
		after(patience + longestNap)
		looks := f.looked()
		if looks < 10 || looks > 30 {
			t.Errorf("looked %d times before giving up, want a few, ever less often", looks)
		}
		after(24 * time.Hour)
		if more := f.looked() - looks; more != 0 {
			t.Errorf("looked %d times more after giving up", more)
		}
		f.unpack("default", "top")
		f.heard("other")
		after(time.Hour)
		f.expect(t)
		f.heard("default")
		after(firstLook)
		f.expect(t, backendName("default", 1, "top"))
	})
}

func TestIdleWatcherAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.heard("default")
		f.heard("")
		f.committed("default/1/some container")
		f.committed("no backend name")
		f.committed("default/1/sha256:short")
		after(time.Hour)
		if looks := f.looked(); looks != 0 {
			t.Errorf("looked %d times", looks)
		}
	})
}

func TestSameChainInTwoNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.committed(backendName("a", 1, "top"))
		f.committed(backendName("b", 2, "top"))
		f.unpack("b", "top")
		after(time.Minute)
		f.expect(t, backendName("b", 2, "top"))
		f.unpack("a", "top")
		after(time.Minute)
		f.expect(t, backendName("b", 2, "top"), backendName("a", 1, "top"))
	})
}

// Removed and pulled again, the chain has another backend name.
func TestLatestNameOfAChainCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.committed(backendName("default", 1, "top"))
		f.committed(backendName("default", 9, "top"))
		f.unpack("default", "top")
		after(time.Minute)
		f.expect(t, backendName("default", 9, "top"))
	})
}

func TestWatcherOutlivesContainerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.setDown(true)
		f.unpack("default", "top")
		f.committed(backendName("default", 1, "top"))
		after(time.Minute)
		f.expect(t)
		f.setDown(false)
		after(longestNap)
		f.expect(t, backendName("default", 1, "top"))
	})
}

func TestFailedFlattenIsNotRepeated(t *testing.T) {
	for name, failure := range map[string]error{"failure": errors.New("broken"), "snapshot removed": errdefs.ErrNotFound} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startWatcher(t)
				f.flattenWith(func(context.Context) error { return failure })
				f.unpack("default", "top", "next")
				f.committed(backendName("default", 1, "top"))
				after(time.Hour)
				f.heard("default")
				after(time.Hour)
				f.expect(t, backendName("default", 1, "top"))
				f.committed(backendName("default", 2, "next"))
				after(firstLook)
				f.expect(t, backendName("default", 1, "top"), backendName("default", 2, "next"))
			})
		})
	}
}

func TestPanicInFlattenDoesNotEndTheWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.flattenWith(func(context.Context) error { panic("boom") })
		f.unpack("default", "top", "next")
		f.committed(backendName("default", 1, "top"))
		after(firstLook)
		f.flattenWith(nil)
		f.committed(backendName("default", 2, "next"))
		after(firstLook)
		f.expect(t, backendName("default", 1, "top"), backendName("default", 2, "next"))
	})
}

// News that arrives all the time must not put off the look for ever.
func TestConstantNewsDoNotStarveTheWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		f.unpack("default", "layer 0")
		for i := range 10 {
			f.committed(backendName("default", i, fmt.Sprintf("layer %d", i)))
			after(firstLook / 4)
		}
		f.expect(t, backendName("default", 0, "layer 0"))
	})
}

func TestFlattenHasTheNamespaceAndEndsWithTheWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		namespace := make(chan string, 1)
		f.flattenWith(func(ctx context.Context) error {
			ns, _ := namespaces.Namespace(ctx)
			namespace <- ns
			<-ctx.Done() // the clean-up of startWatcher waits for this
			return ctx.Err()
		})
		f.unpack("team-a", "top")
		f.committed(backendName("team-a", 1, "top"))
		after(firstLook)
		if got := <-namespace; got != "team-a" {
			t.Errorf("flatten in namespace %q, want team-a", got)
		}
	})
}

func TestWatcherRemembersABoundedNumberOfLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWatcher(t)
		for i := range mostLayers + 10 {
			f.committed(backendName("default", i, fmt.Sprintf("layer %d", i)))
		}
		f.unpack("default", "layer 9", "layer 10")
		after(time.Hour)
		f.expect(t, backendName("default", 10, "layer 10"))
	})
}
