// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// A layer that the node has already, below another chain or in another of
// containerd's namespaces, needs no unpacking and no download: the new snapshot
// shares the TOC of the layer that is there.
//
//	Prepare(extract-…) ─▶ what layer would make the chain that is wanted? ─▶ donor
//	      staged ◀─ read-only mounts, and Commit comes next            (containerd 2.4)
//	      remote ◀─ committed at once, and ErrAlreadyExists for answer (before)
//
// Labels say what is wanted, and nothing else is believed of them: that a chain
// has a layer on top is proved by its chain ID, and diffIDs are those that Apply
// computed.

// reuseProtocol is how containerd is told that a layer is there.
type reuseProtocol uint8

const (
	reuseNot reuseProtocol = iota
	// reuseStaged answers with read-only mounts.
	reuseStaged
	// reuseRemote commits a snapshot and answers ErrAlreadyExists. containerd
	// then takes the snapshot with the parent that it named: who unpacks layers
	// side by side names none, and would be left with a chain in pieces.
	reuseRemote
)

// labelParentChain is set on layers above the first, whether or not Prepare
// names their parent (containerd 2.3 and later).
const labelParentChain = "containerd.io/snapshot/parent-chain-id"

// protocolFor chooses by containerd's version and by what it asks for. Clients
// that unpack by themselves may be older than containerd; what they do not know
// they do not ask for.
func protocolFor(version string, parent string, labels map[string]string) reuseProtocol {
	v := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(v) < 3 {
		return reuseNot
	}
	major, err := strconv.Atoi(v[0])
	minor, err2 := strconv.Atoi(v[1])
	atLeast := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case err != nil || err2 != nil:
		return reuseNot
	case atLeast(2, 4) && labels[snapshots.LabelSnapshotDiffID] != "":
		return reuseStaged
	case atLeast(2, 2) && parent == "": // perhaps one of several that are unpacked at once
		return reuseNot
	}
	return reuseRemote
}

// reuse makes the snapshot that is wanted from a layer that is there. No mounts
// and no error: there is none, or it cannot be used. ErrAlreadyExists: the
// layer's snapshot is committed.
func (s *Snapshotter) reuse(ctx context.Context, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	want := digest.Digest(info.Labels[snapshots.LabelSnapshotRef])
	if want.Validate() != nil {
		return nil, nil
	}
	donor, ok := s.donorFor(ctx, want, parent, info.Labels)
	if !ok {
		return nil, nil
	}
	version, err := s.cfg.ContainerdVersion(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for containerd's version: %w", err)
	}
	protocol := protocolFor(version, parent, info.Labels)
	parts := strings.SplitN(key, "/", 3)
	if protocol == reuseNot || len(parts) != 3 {
		return nil, nil
	}
	if protocol == reuseRemote {
		switch name, err := s.committedAs(ctx, want, parent); {
		case err != nil:
			return nil, err
		case name != "":
			return nil, existsAlready(name)
		}
	}
	// The writer keeps sweeps away until the new TOC refers to the contents.
	w := s.pack.Begin()
	defer w.Close()
	if !s.canGive(ctx, donor, w) {
		return nil, nil
	}
	m, err := s.stage(ctx, key, parent, donor, opts)
	if err != nil {
		return nil, err
	}
	log.G(ctx).WithFields(log.Fields{"key": key, "chainID": want.String(), "from": donor}).Info("layer reused")
	if protocol == reuseStaged {
		return m, nil
	}
	name := parts[0] + "/" + parts[1] + "/" + want.String()
	if err := s.Commit(ctx, name, key, snapshots.WithLabels(info.Labels)); err != nil {
		return nil, s.unstage(ctx, key, err)
	}
	return nil, existsAlready(name)
}

func existsAlready(name string) error {
	return fmt.Errorf("snapshot %s has the layer already: %w", name, errdefs.ErrAlreadyExists)
}

// committedAs returns the snapshot that containerd is going to find when it
// hears that a chain exists above a parent; "" if there is none.
func (s *Snapshotter) committedAs(ctx context.Context, want digest.Digest, parent string) (name string, err error) {
	filter := fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, want, parent)
	err = s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && name == "" {
			name = info.Name
		}
		return nil
	}, filter)
	if err != nil || name == "" {
		return "", err
	}
	if ids, ok := s.diffIDs(ctx, name); !ok || identity.ChainID(ids) != want {
		return "", fmt.Errorf("snapshot %s says that it is %s, and is not known to be: %w", name, want, errdefs.ErrFailedPrecondition)
	}
	return name, nil
}

// donorFor finds a layer that makes the chain that is wanted on top of what lies
// below it.
func (s *Snapshotter) donorFor(ctx context.Context, want digest.Digest, parent string, labels map[string]string) (id string, ok bool) {
	var below []digest.Digest
	if parent != "" {
		if below, ok = s.diffIDs(ctx, parent); !ok {
			return "", false
		}
		below = []digest.Digest{identity.ChainID(below)}
	} else if chain := digest.Digest(labels[labelParentChain]); chain.Validate() == nil {
		below = []digest.Digest{chain}
	}
	makes := func(diffID digest.Digest) bool {
		return identity.ChainID(append(below[:len(below):len(below)], diffID)) == want
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diffID := digest.Digest(labels[snapshots.LabelSnapshotDiffID]); diffID != "" {
		id = s.donor(diffID)
		return id, id != "" && makes(diffID)
	}
	for diffID := range s.donors {
		if makes(diffID) {
			id = s.donor(diffID)
			return id, id != ""
		}
	}
	return "", false
}

// donor returns a layer with the diffID that is there. s.mu is held.
func (s *Snapshotter) donor(diffID digest.Digest) string {
	for id := range s.donors[diffID] {
		if exists(s.toc(id)) {
			return id
		}
	}
	return ""
}

// diffIDs returns those of a committed snapshot and its parents, the bottom one
// first, unless one is not known: a layer that was an upper directory has none.
func (s *Snapshotter) diffIDs(ctx context.Context, name string) (list []digest.Digest, ok bool) {
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return nil, false
	}
	for _, id := range ids {
		src, err := s.readSource(id)
		if err != nil || src.DiffID == "" {
			return nil, false
		}
		list = append(list, src.DiffID)
	}
	return list, true
}

// noteDonor remembers a layer by its diffID.
func (s *Snapshotter) noteDonor(id string, diffID digest.Digest) {
	if diffID == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.donors[diffID] == nil {
		s.donors[diffID] = map[string]bool{}
	}
	s.donors[diffID][id] = true
}

// forgetDonor is the opposite, for a layer that was removed. s.mu is held.
func (s *Snapshotter) forgetDonor(id string) {
	for diffID, ids := range s.donors {
		if delete(ids, id); len(ids) == 0 {
			delete(s.donors, diffID)
		}
	}
}

// canGive tells whether the contents of a layer are all there, which w then
// pins, or can be restored.
func (s *Snapshotter) canGive(ctx context.Context, id string, w *pack.Writer) bool {
	missing := 0
	err := s.eachContent(id, func(d layer.Digest) error {
		if _, err := w.Lookup(pack.Digest(d)); err != nil {
			missing++
		}
		return ctx.Err()
	})
	blobs := restorable{s: s}
	return err == nil && (missing == 0 || blobs.layer(ctx, id))
}

// stage makes an active snapshot that has its layer already.
func (s *Snapshotter) stage(ctx context.Context, key, parent, donor string, opts []snapshots.Opt) ([]mount.Mount, error) {
	dir, err := s.newDirectory(snapshots.KindActive, true, "")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, stagedMark), nil, 0o600)
		failpoint.Hit("staged.create")
	}
	var snap storage.Snapshot
	if err == nil {
		snap, err = s.nameDirectory(ctx, dir, snapshots.KindActive, key, parent, opts)
	}
	if err != nil {
		if dir != "" {
			os.RemoveAll(dir) // or the next start does
		}
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	err = s.shareLayer(ctx, donor, snap.ID)
	if err == nil {
		err = s.checkActive(ctx, snap.ID) // or a collection may have come before the layer was there
	}
	var m []mount.Mount
	if err == nil {
		m, err = s.mountsOf(ctx, snap)
	}
	if err != nil {
		return nil, s.unstage(ctx, key, err)
	}
	return m, nil
}

// unstage removes a snapshot that came to nothing.
func (s *Snapshotter) unstage(ctx context.Context, key string, why error) error {
	if err := s.Remove(context.WithoutCancel(ctx), key); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("key", key).Warn("could not remove a snapshot that was to reuse a layer; containerd's garbage collection does")
	}
	s.askSweep()
	return fmt.Errorf("reuse a layer for %s: %w", key, why)
}

// shareLayer gives a snapshot the layer of another one. Its source is in the
// namespace that it is for: if the blob is not there, all contents stay.
func (s *Snapshotter) shareLayer(ctx context.Context, donor, id string) error {
	src, err := s.readSource(donor)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.layer(id), 0o700); err != nil {
		return err
	}
	failpoint.Hit("layer.mkdir")
	src.Namespace, _ = namespaces.Namespace(ctx)
	if err := s.writeSource(id, src); err != nil {
		return err
	}
	if err := os.Link(s.toc(donor), s.toc(id)); err != nil {
		return err
	}
	failpoint.Hit("toc.link")
	s.noteDonor(id, src.DiffID)
	s.changed.Add(1)
	if s.cfg.Durability == DurabilitySync {
		return s.makeDurable(ctx, id)
	}
	s.background(func(ctx context.Context) { _ = s.makeDurable(ctx, id) })
	return nil
}

// staged tells what was applied to the snapshot of mounts that were the answer
// to an unpack of a layer that was there. Clients that do not know such mounts
// apply the layer to them.
func (s *Snapshotter) staged(ctx context.Context, mounts []mount.Mount) (applied ocispec.Descriptor, ok bool) {
	if len(mounts) != 1 || mounts[0].Type != "bind" || !mounts[0].ReadOnly() {
		return applied, false
	}
	id, ok := s.upperID(mounts[0].Source)
	if !ok || !exists(s.stagedMark(id)) || s.checkActive(ctx, id) != nil {
		return applied, false
	}
	src, err := s.readSource(id)
	if err != nil || src.DiffID == "" || !exists(s.toc(id)) {
		return applied, false
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: src.DiffID, Size: src.DiffSize}, true
}
