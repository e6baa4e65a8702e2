// SPDX-License-Identifier: Apache-2.0

package images

import (
	"fmt"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Family chooses between the two sets of media types that registries hold.
type Family string

// OCI and Docker schema 2.
const (
	OCI    Family = "oci"
	Docker Family = "docker"
)

// Image puts layers, bottom first, into an image for this machine's architecture that runs the guest program.
// Docker has no media type for zstd; such a layer keeps the OCI one.
func Image(f Family, layers ...v1.Layer) (v1.Image, error) {
	titled := make([]Titled, len(layers))
	for i, l := range layers {
		titled[i] = Titled{Title: fmt.Sprintf("layer %d", i+1), Layer: l}
	}
	return TitledImage(f, titled)
}

// TitledImage is Image for layers whose titles are to be in the image's history, as the commands that made them.
func TitledImage(f Family, layers []Titled) (v1.Image, error) {
	manifest, config := types.OCIManifestSchema1, types.OCIConfigJSON
	if f == Docker {
		manifest, config = types.DockerManifestSchema2, types.DockerConfigJSON
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifest), config)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		OS:           "linux",
		Architecture: runtime.GOARCH,
		Created:      v1.Time{Time: Epoch},
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Cmd: []string{GuestPath, "hello"},
			Env: []string{"PATH=/bin"},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	for i, l := range layers {
		media, err := l.Layer.MediaType()
		if err != nil {
			return nil, err
		}
		if f == Docker {
			switch media {
			case types.OCILayer:
				media = types.DockerLayer
			case types.OCIUncompressedLayer:
				media = types.DockerUncompressedLayer
			}
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:     l.Layer,
			MediaType: media,
			History:   v1.History{Created: v1.Time{Time: Epoch}, CreatedBy: l.Title},
		})
		if err != nil {
			return nil, fmt.Errorf("append layer %d: %w", i+1, err)
		}
	}
	return img, nil
}
