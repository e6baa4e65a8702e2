// SPDX-License-Identifier: Apache-2.0

package boltfile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// Whatever bbolt writes is read as it is: trees of several levels, values of
// several pages, small and large buckets, and what deletions leave.
func TestReadSeesWhatWasWritten(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 60 {
		if err := db.Update(func(tx *bbolt.Tx) error {
			for range 40 {
				b, err := tx.CreateBucketIfNotExists(fmt.Append(nil, "bucket", r.IntN(5)))
				if err != nil {
					return err
				}
				if r.IntN(3) == 0 {
					if b, err = b.CreateBucketIfNotExists(fmt.Append(nil, "inner", r.IntN(30))); err != nil {
						return err
					}
				}
				if r.IntN(4) == 0 {
					err = b.Delete(fmt.Append(nil, "key", r.IntN(300)))
				} else {
					err = errors.Join(b.SetSequence(uint64(r.IntN(99))), b.Put(fmt.Append(nil, "key", r.IntN(300)), []byte(strings.Repeat("v", r.IntN(300)*r.IntN(40)))))
				}
				if err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		root, err := Read(b)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bbolt.Bucket) error { return same(b, root.Buckets[string(name)]) })
		}); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func same(want *bbolt.Bucket, got *Bucket) error {
	if got == nil || got.Sequence != want.Sequence() {
		return fmt.Errorf("bucket %+v, want sequence %d", got, want.Sequence())
	}
	values, buckets := 0, 0
	err := want.ForEach(func(k, v []byte) error {
		if v == nil {
			buckets++
			return same(want.Bucket(k), got.Buckets[string(k)])
		}
		values++
		if string(got.Values[string(k)]) != string(v) {
			return fmt.Errorf("%s: %d bytes, want %d", k, len(got.Values[string(k)]), len(v))
		}
		return nil
	})
	if err == nil && (values != len(got.Values) || buckets != len(got.Buckets)) {
		err = fmt.Errorf("%d values and %d buckets, want %d and %d", len(got.Values), len(got.Buckets), values, buckets)
	}
	return err
}

// Garbage is an error or other data, and never a panic.
func TestReadOfGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for i := range 200 {
			b, err := tx.CreateBucketIfNotExists(fmt.Append(nil, "bucket", i%7))
			if err == nil {
				err = b.Put(fmt.Append(nil, "key", i), []byte(strings.Repeat("v", i)))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	damaged := 0
	for range 5000 {
		b := append([]byte(nil), whole...)
		for range 1 + r.IntN(8) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		if r.IntN(10) == 0 {
			b = b[:r.IntN(len(b))]
		}
		if _, err := Read(b); errors.Is(err, ErrDamaged) {
			damaged++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if damaged < 1000 {
		t.Errorf("of 5000 files with other bytes %d were damaged", damaged)
	}
	m, err := readMeta(whole)
	if err != nil {
		t.Fatal(err)
	}
	for n := range m.pages * m.pageSize {
		if n%997 == 0 {
			if _, err := Read(whole[:n]); !errors.Is(err, ErrDamaged) {
				t.Errorf("the first %d bytes: %v", n, err)
			}
		}
	}
}
