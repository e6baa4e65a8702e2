// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzWriter feeds trees that may break any rule: the Writer either says that
// they are invalid, or writes an image that reads back equal.
func FuzzWriter(f *testing.F) {
	for seed := range byte(8) {
		input := make([]byte, 600)
		rnd := rand.New(rand.NewPCG(uint64(seed), 1))
		for i := range input {
			input[i] = byte(rnd.Uint32())
		}
		f.Add(input)
	}
	samples()
	f.Fuzz(func(t *testing.T, input []byte) {
		// Each choice takes bytes of the input, and is 0 after its end.
		m := growTree(func(n int) int {
			v := 0
			for limit := n - 1; limit > 0 && len(input) > 0; limit >>= 8 {
				v = v<<8 | int(input[0])
				input = input[1:]
			}
			return v % n
		}, 60, true)

		w, err := m.writer()
		var out bytes.Buffer
		if err == nil {
			_, err = w.WriteTo(&out)
		}
		switch {
		case err == nil:
			checkReader(t, m, out.Bytes())
			checkIndexes(t, m, out.Bytes())
		case !errors.Is(err, errdefs.ErrInvalidArgument):
			t.Errorf("error %v is not an invalid argument", err)
		case out.Len() > 0:
			t.Errorf("%d bytes were written before the error %v", out.Len(), err)
		}
	})
}
