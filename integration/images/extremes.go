// SPDX-License-Identifier: Apache-2.0

package images

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// extremesRecipe changes whenever the layers below change.
const extremesRecipe = "extremes 1"

const (
	manyLayers      = 128 // all that overlayfs snapshotters were ever asked to mount
	filesOfEach     = 60
	smallFiles      = 1_000_000
	smallFileLayers = 4
	smallFileDirs   = 5000
	srvDirs         = 50
)

// ManyLayers makes an image of 128 layers, each of which changes a little of what those below it have.
func ManyLayers(s *Store, guest []byte) ([]v1.Layer, error) {
	return extremes(s, "layers", manyLayers, guest, func(w *LayerWriter, layer int) error {
		for i := range filesOfEach {
			// Every file is written by four layers, and the last one counts.
			dir := fmt.Sprintf("srv/%d", (layer/4*filesOfEach+i)%srvDirs)
			content := Text(uint64(layer*filesOfEach+i), 500+i*300)
			if err := w.File(fmt.Sprintf("%s/file-%d-%d", dir, layer/4, i), 0o644, content); err != nil {
				return err
			}
		}
		if layer > 4 {
			return w.Whiteout(fmt.Sprintf("srv/%d/file-%d-1", ((layer/4-1)*filesOfEach+1)%srvDirs, layer/4-1))
		}
		return nil
	})
}

// ManyFiles makes an image of a million files of some hundred bytes to two KiB.
func ManyFiles(s *Store, guest []byte) ([]v1.Layer, error) {
	return extremes(s, "files", smallFileLayers, guest, func(w *LayerWriter, layer int) error {
		const each = smallFiles / smallFileLayers
		text := Text(uint64(layer), 1<<20)
		for i := range each {
			if i%(smallFiles/smallFileDirs) == 0 {
				if err := w.Dir(fmt.Sprintf("srv/%d-%d", layer, i/(smallFiles/smallFileDirs)), 0o755); err != nil {
					return err
				}
			}
			name := fmt.Sprintf("srv/%d-%d/file-%d", layer, i/(smallFiles/smallFileDirs), i)
			// A number of its own makes every content another one.
			at := i * 13 % (len(text) - 2100)
			content := append(fmt.Appendf(nil, "%d/%d\n", layer, i), text[at:at+200+i*7%1800]...)
			if err := w.File(name, 0o644, content); err != nil {
				return err
			}
		}
		return nil
	})
}

// extremes makes the layers of an image whose first one is the base of all images.
func extremes(s *Store, name string, layers int, guest []byte, write func(w *LayerWriter, layer int) error) (list []v1.Layer, err error) {
	for i := range layers {
		key := fmt.Sprintf("%s %s layer %d guest %x", extremesRecipe, name, i, sha256.Sum256(guest))
		l, err := s.Layer(key, Gzip, func(w *LayerWriter) error {
			if i == 0 {
				if err := WriteBase(w, guest); err != nil {
					return err
				}
			}
			if err := writeSrv(w); err != nil {
				return err
			}
			return write(w, i)
		})
		if err != nil {
			return nil, fmt.Errorf("image of many %s: %w", name, err)
		}
		list = append(list, l)
	}
	return list, nil
}

// writeSrv states the directories that layers have in common: where one leaves them out, their times are those of the
// unpacking.
func writeSrv(w *LayerWriter) error {
	if err := w.Dir("srv", 0o755); err != nil {
		return err
	}
	for i := range srvDirs {
		if err := w.Dir(fmt.Sprintf("srv/%d", i), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Text returns bytes that compress about as well as source code; another seed, other bytes.
func Text(seed uint64, size int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 2))
	words := make([]string, 400)
	for i := range words {
		word := make([]byte, 2+rnd.IntN(9))
		for k := range word {
			word[k] = byte('a' + rnd.IntN(26))
		}
		words[i] = string(word)
	}
	text := make([]byte, 0, size+16)
	for len(text) < size {
		text = append(text, words[rnd.IntN(len(words))]...)
		text = append(text, " \n;("[rnd.IntN(4)])
	}
	return text[:size]
}
