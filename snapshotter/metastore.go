// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/boltfile"
)

// openMetastore opens the metastore. All that it does not know is going to be
// removed, so nothing less than a whole one is opened: ErrFailedPrecondition,
// with what a person can do. A file that is not there is no damage: it is a new
// store, or somebody chose to begin anew.
func (l layout) openMetastore() (*storage.MetaStore, error) {
	if err := l.checkMetastore(); errors.Is(err, boltfile.ErrDamaged) {
		return nil, fmt.Errorf("metastore %s: %w; nothing was changed: put back a copy of the file, "+
			"or remove the containers and images of this snapshotter from containerd, delete the file, start again and pull: %w",
			l.metadata(), err, errdefs.ErrFailedPrecondition)
	} else if err != nil {
		return nil, err
	}
	return storage.NewMetaStore(l.metadata())
}

func (l layout) checkMetastore() error {
	b, err := os.ReadFile(l.metadata())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) == 0 { // as a crash of the first start may leave it
		for _, dir := range []string{l.layersDir(), l.snapshotsDir(), l.imagesDir()} {
			if names, err := os.ReadDir(dir); err != nil {
				return err
			} else if len(names) > 0 {
				return fmt.Errorf("it is empty and %s is not: %w", dir, boltfile.ErrDamaged)
			}
		}
		return nil
	}
	root, err := boltfile.Read(b)
	if err != nil {
		return err
	}
	return checkSnapshots(root)
}

// checkSnapshots compares what the metastore says twice: a snapshot that has
// got another ID would cost the files of two.
func checkSnapshots(root *boltfile.Bucket) error {
	v1 := root.Buckets["v1"]
	if v1 == nil && len(root.Values)+len(root.Buckets) == 0 {
		return nil // there has never been a snapshot
	}
	if v1 == nil || v1.Buckets["snapshots"] == nil || v1.Buckets["parents"] == nil {
		return fmt.Errorf("it has no snapshots: %w", boltfile.ErrDamaged)
	}
	all, ids := v1.Buckets["snapshots"], map[string]uint64{}
	seen := map[uint64]bool{}
	for name, s := range all.Buckets {
		id, n := binary.Uvarint(s.Values["id"])
		if kind := s.Values["kind"]; n <= 0 || id == 0 || id > all.Sequence || seen[id] || len(kind) != 1 || kind[0] < 1 || kind[0] > 3 {
			return fmt.Errorf("snapshot %q has ID %d of %d, kind %v: %w", name, id, all.Sequence, kind, boltfile.ErrDamaged)
		}
		seen[id], ids[name] = true, id
	}
	links := 0
	for name, s := range all.Buckets {
		parent, ok := s.Values["parent"]
		if !ok {
			continue
		}
		links++
		key := binary.AppendUvarint(append(binary.AppendUvarint(nil, ids[string(parent)]), 0), ids[name])
		if link, ok := v1.Buckets["parents"].Values[string(key)]; !ok || string(link) != name {
			return fmt.Errorf("snapshot %q is not a child of %q: %w", name, parent, boltfile.ErrDamaged)
		}
	}
	if n := len(v1.Buckets["parents"].Values); n != links || len(all.Values) > 0 {
		return fmt.Errorf("%d children of %d: %w", n, links, boltfile.ErrDamaged)
	}
	return nil
}
