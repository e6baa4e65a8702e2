// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Algorithm is how a cluster is compressed.
type Algorithm uint8

const (
	Stored Algorithm = 0 // not at all
	LZ4    Algorithm = 1 // one raw block
	Zstd   Algorithm = 2 // one frame
)

// String is the name of the algorithm.
func (a Algorithm) String() string {
	switch a {
	case Stored:
		return "none"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// codec compresses clusters in the form that EROFS wants: at the end of whole
// blocks, with fewer than a block of zeros before. The same input gives the
// same output as long as the versions of the encoders are the same.
type codec struct {
	algorithm Algorithm
	level     int
	zstd      *zstd.Encoder
	lz4       sync.Pool // of func(src, dst []byte) (int, error)
	zeros     []byte    // a compressed cluster of nothing but zeros
}

// MaxLevel is the highest level that the algorithm has; the lowest is 1.
func (a Algorithm) MaxLevel() int {
	switch a {
	case LZ4:
		return maxLZ4Level
	case Zstd:
		return maxZstdLevel
	}
	return 0
}

// Levels of compression.
const (
	defaultZstdLevel = 1
	defaultLZ4Level  = 0 // the fast compressor; others look further
	maxZstdLevel     = 22
	maxLZ4Level      = 9
)

var lz4Levels = [maxLZ4Level + 1]lz4.CompressionLevel{lz4.Fast, lz4.Level1, lz4.Level2, lz4.Level3, lz4.Level4, lz4.Level5, lz4.Level6, lz4.Level7, lz4.Level8, lz4.Level9}

// newCodec makes an encoder; nil for Stored. Level 0 is the algorithm's default.
func newCodec(a Algorithm, level int) (*codec, error) {
	c := &codec{algorithm: a, level: level}
	if level < 0 || level > a.MaxLevel() {
		return nil, fmt.Errorf("%s has levels 1 to %d, not %d", a, a.MaxLevel(), level)
	}
	switch a {
	case Stored:
		return nil, nil
	case LZ4:
		c.lz4.New = func() any {
			if level == defaultLZ4Level {
				return (&lz4.Compressor{}).CompressBlock
			}
			return (&lz4.CompressorHC{Level: lz4Levels[level]}).CompressBlock
		}
	case Zstd:
		if level == 0 {
			c.level = defaultZstdLevel
		}
		var err error
		c.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(c.level)), zstd.WithWindowSize(ClusterSize),
			zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
		if err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%s is not known", a)
	}
	c.zeros = bytes.Clone(c.encode(make([]byte, ClusterSize), make([]byte, encodeBuffer)))
	return c, nil
}

// encodeBuffer is the size of the buffer that encode wants: room for the
// zeros in front, and for what does not shrink.
const encodeBuffer = BlockSize + ClusterSize + ClusterSize/8

// encode compresses at most ClusterSize bytes and returns whole blocks in buf;
// nil if that would not save a block.
func (c *codec) encode(src, buf []byte) []byte {
	plain := blocksOf(uint64(len(src)))
	n := 0
	switch c.algorithm {
	case LZ4:
		compress := c.lz4.Get().(func(src, dst []byte) (int, error))
		n, _ = compress(src, buf[BlockSize:]) // what does not fit does not shrink either: n is 0
		c.lz4.Put(compress)
	case Zstd:
		n = len(c.zstd.EncodeAll(src, buf[BlockSize:BlockSize]))
	}
	if n == 0 || blocksOf(uint64(n)) >= plain {
		return nil
	}
	pad := -n & (BlockSize - 1)
	out := buf[BlockSize-pad : BlockSize+n]
	clear(out[:pad])
	return out
}

// decoder opens clusters of any algorithm. Not safe for concurrent use.
type decoder struct {
	zstd *zstd.Decoder
}

// decode opens a cluster into dst, which has its decoded length. The error says
// what is wrong with the bytes.
func (d *decoder) decode(a Algorithm, src, dst []byte) error {
	switch a {
	case Stored:
		copy(dst, src)
		return nil
	case LZ4, Zstd:
	default:
		return fmt.Errorf("%s is not known", a)
	}
	data := bytes.TrimLeft(src, "\x00")
	if len(src)-len(data) >= BlockSize {
		return fmt.Errorf("a whole block of zeros precedes the cluster")
	}
	if a == LZ4 {
		n, err := lz4.UncompressBlock(data, dst)
		if err == nil && n != len(dst) {
			err = fmt.Errorf("%d bytes decoded, not %d", n, len(dst))
		}
		return err
	}
	if d.zstd == nil {
		var err error
		if d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true)); err != nil {
			return err
		}
	}
	got, err := d.zstd.DecodeAll(data, dst[:0:len(dst)])
	if err == nil && len(got) != len(dst) {
		err = fmt.Errorf("%d bytes decoded, not %d", len(got), len(dst))
	}
	return err
}

// stretch makes a zstd frame, in whole blocks as encode returns it, fill so many
// blocks: a frame may hold any number of empty raw blocks, 3 zero bytes each. Nil
// if it is too long already.
func stretch(encoded []byte, blocks int) []byte {
	frame := bytes.TrimLeft(encoded, "\x00")
	var head zstd.Header
	if err := head.Decode(frame); err != nil || len(frame) > blocks*BlockSize || binary.LittleEndian.Uint32(frame) != 0xfd2fb528 {
		return nil
	}
	// More than all blocks but one must be filled.
	missing := max((blocks-1)*BlockSize+1-len(frame), 0)
	empty := make([]byte, (missing+2)/3*3)
	out := make([]byte, blocks*BlockSize-len(frame)-len(empty), blocks*BlockSize)
	out = append(out, frame[:head.HeaderSize]...)
	out = append(out, empty...)
	return append(out, frame[head.HeaderSize:]...)
}
