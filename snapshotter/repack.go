// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// repack moves what is needed out of shared clusters in which little is, so
// that the next sweep frees them. Images that show them are built again;
// clusters that an image in use shows stay as they are. s.collecting is held.
//
//	drop the idle images ─▶ move their contents ─▶ build the images ─▶ sweep
func (s *Snapshotter) repack(ctx context.Context, need needed) error {
	worst := s.pack.Wasted(need.used, nil)
	// What could not be moved is not tried again before it is something else.
	maps.DeleteFunc(s.repacked, func(b uint32, _ bool) bool { return !worst[b] })
	maps.DeleteFunc(worst, func(b uint32, _ bool) bool { return s.repacked[b] })
	if len(worst) == 0 {
		return nil
	}
	start := time.Now()
	images, err := s.dropShowing(ctx, worst)
	if err != nil {
		return fmt.Errorf("repack shared clusters: %w", err)
	}
	if len(worst) == 0 {
		return nil // images in use show them
	}
	maps.Copy(s.repacked, worst)
	// From here on the images are built again by whoever needs them first, with
	// the contents wherever they are by then.
	w := s.pack.Begin()
	defer w.Close()
	v := s.pack.Verifier(nil)
	defer v.Close()
	move := func(d layer.Digest) error {
		p, err := s.pack.Lookup(pack.Digest(d))
		if err != nil || p.Encoding != pack.EncodingShared || !worst[p.Block] {
			return nil // freed, or well where it is
		}
		if err := w.Move(ctx, v, pack.Digest(d)); !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
			return err
		}
		return nil // a check reports it; it comes from the blob when it is needed
	}
	for _, dropped := range images {
		tree, err := s.imageTree(ctx, dropped.imageName, dropped.ids)
		if err != nil {
			return fmt.Errorf("repack shared clusters: %w", err)
		}
		tree.Contents(func(d layer.Digest, _ int64) {
			if err == nil {
				err = move(d)
			}
		})
		if err != nil {
			return fmt.Errorf("repack shared clusters: %w", err)
		}
	}
	for id := range need.layers {
		if err := s.eachContent(id, move); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("layer", id).Debug("repack: layer passed over")
		}
	}
	if err := w.Publish(true); err != nil {
		return fmt.Errorf("repack shared clusters: %w", err)
	}
	st := w.Stats()
	log.G(ctx).WithFields(log.Fields{
		"clusters": len(worst), "contents": st.NewContents, "bytes": st.NewBytes, "images": len(images), "duration": time.Since(start).Round(time.Millisecond),
	}).Info("contents moved out of clusters that were mostly unused")
	for _, dropped := range images {
		s.background(func(ctx context.Context) {
			_, err := s.shown(ctx, dropped.imageName, dropped.ids, func(ctx context.Context) (*flatten.Tree, error) {
				return s.imageTree(ctx, dropped.imageName, dropped.ids)
			})
			if err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Warn("an image could not be built again; it is tried when it is needed")
			}
		})
	}
	s.askSweep()
	return nil
}

// droppedImage is an image that is to be built again, of the layers ids.
type droppedImage struct {
	imageName
	ids []string
}

// dropShowing removes the images that show any of the clusters and returns them.
// What an image shows that stays, because it is in use, may be mounted at any
// time or has no snapshot, is taken out of the clusters.
func (s *Snapshotter) dropShowing(ctx context.Context, clusters map[uint32]bool) (dropped []droppedImage, err error) {
	s.mu.Lock()
	began := s.clock
	s.mu.Unlock()
	// Read after that: whoever was given mounts before has a snapshot by now, and
	// whoever is later keeps the image from being dropped.
	ids, err := s.readKnown(ctx)
	if err != nil {
		return nil, err
	}
	images, err := s.imageFiles()
	if err != nil {
		return nil, err
	}
	tops, byName := s.tops(ids), ids.byName()
	shows, err := s.showing(ids, images, clusters)
	if err != nil {
		return nil, err
	}
	for i, blocks := range shows {
		worth := false
		for _, b := range blocks {
			worth = worth || clusters[b]
		}
		if !worth {
			continue
		}
		switch err := s.dropImage(i, began); {
		case errdefs.IsFailedPrecondition(err):
			shows.spare(i, clusters)
		case err != nil:
			return nil, err
		default:
			dropped = append(dropped, droppedImage{i, ids.lineage(tops[i.chain][0], byName)})
		}
	}
	return dropped, nil
}

// showers are images by the clusters that they show.
type showers map[imageName][]uint32

// spare leaves an image as it is, and so the clusters.
func (m showers) spare(i imageName, clusters map[uint32]bool) {
	for _, b := range m[i] {
		delete(clusters, b)
	}
	delete(m, i)
}

// showing finds which of the images show any of the clusters and can be built
// again. What the others show is taken out of the clusters: it is no reason to
// drop one.
func (s *Snapshotter) showing(ids known, images []imageName, clusters map[uint32]bool) (showers, error) {
	tops, handedOut := s.tops(ids), handedOut(ids, s.chains(ids))
	shows := showers{}
	for _, i := range images {
		refs, err := s.readRefs(i)
		if err != nil {
			return nil, err
		}
		for k, b := range refs.Blocks {
			if refs.Used[k] > 0 && clusters[b] {
				shows[i] = append(shows[i], b)
			}
		}
	}
	for i := range shows {
		users, err := mounts.Users(s.imageMount(i))
		if err != nil {
			return nil, err
		}
		if len(tops[i.chain]) == 0 || len(users) > 0 || handedOut[i.chain] {
			shows.spare(i, clusters)
		}
	}
	return shows, nil
}
