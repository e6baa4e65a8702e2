// SPDX-License-Identifier: Apache-2.0

// Package onelayer owns what is to be said of an image whose layers became one:
// its config, its manifest and its index.
//
//	config of the image ──Config──▶ the same, with one layer and a history that says so
//
// All that it makes is a function of what it is given: no clock, no host.
package onelayer

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config returns an image's config, JSON, with one layer in place of all. What
// the spec does not know is kept. Every entry of the history stays, without a
// layer, and a last one says which layers of which manifest became this one.
//
// ErrInvalidArgument: it is no config of an image.
func Config(original []byte, manifest, diffID digest.Digest) ([]byte, error) {
	var fields map[string]json.RawMessage
	var known ocispec.Image
	if err := json.Unmarshal(original, &fields); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(original, &known); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if fields == nil {
		return nil, fmt.Errorf("config: it is no object: %w", errdefs.ErrInvalidArgument)
	}
	var parts struct {
		History []map[string]json.RawMessage `json:"history"`
		RootFS  map[string]json.RawMessage   `json:"rootfs"`
	}
	if err := json.Unmarshal(original, &parts); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	history := make([]any, 0, len(parts.History)+1)
	for _, h := range parts.History {
		if h == nil {
			h = map[string]json.RawMessage{}
		}
		h["empty_layer"] = json.RawMessage("true")
		history = append(history, h)
	}
	rootfs := map[string]any{}
	for name, value := range parts.RootFS {
		rootfs[name] = value
	}
	rootfs["type"], rootfs["diff_ids"] = "layers", []digest.Digest{diffID}
	layers := "1 layer"
	if n := len(known.RootFS.DiffIDs); n != 1 {
		layers = fmt.Sprintf("%d layers", n)
	}
	history = append(history, ocispec.History{
		Created:   known.Created,
		CreatedBy: "squashctl export",
		Comment:   fmt.Sprintf("%s of %s as one", layers, manifest),
	})
	for name, value := range map[string]any{
		"history": history,
		"rootfs":  rootfs,
	} {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("config: %s: %w", name, err)
		}
		fields[name] = data
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return data, nil
}

// Manifest returns the manifest, JSON, of an image of one layer. Annotations are
// those of the original one.
func Manifest(config, layer ocispec.Descriptor, annotations map[string]string) ([]byte, error) {
	data, err := json.Marshal(ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      config,
		Layers:      []ocispec.Descriptor{layer},
		Annotations: annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return data, nil
}

// Index returns an index, JSON, of manifests, which have their platforms.
func Index(manifests []ocispec.Descriptor, annotations map[string]string) ([]byte, error) {
	data, err := json.Marshal(ocispec.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageIndex,
		Manifests:   manifests,
		Annotations: annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	return data, nil
}
