package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// newXZ unpacks the kind of xz file that a kernel build makes
// (scripts/xz_wrap.sh): CRC32, and the x86 filter before LZMA2, which the xz
// package does not know. Only the first stream is read; maxSize bounds the
// result and the dictionary.
//
// The format: https://tukaani.org/xz/xz-file-format.txt.
func newXZ(src *bytes.Reader, maxSize int64) (io.Reader, error) {
	var header [12]byte
	if _, err := io.ReadFull(src, header[:]); err != nil {
		return nil, err
	}
	check := header[7]
	if check > 1 { // 0 is none, 1 is CRC32; a kernel can read no other
		return nil, fmt.Errorf("xz check of type %d: %w", check, ErrCompression)
	}
	var out []byte
	for {
		n, err := src.ReadByte()
		if err != nil {
			return nil, err
		}
		if n == 0 { // the index follows: no more blocks
			return bytes.NewReader(out), nil
		}
		b, err := readBlockHeader(src, n)
		if err != nil {
			return nil, err
		}
		data, err := b.unpack(src, maxSize-int64(len(out)))
		if err != nil {
			return nil, err
		}
		if check == 1 {
			var sum [4]byte
			if _, err := io.ReadFull(src, sum[:]); err != nil {
				return nil, err
			}
			if binary.LittleEndian.Uint32(sum[:]) != crc32.ChecksumIEEE(data) {
				return nil, errors.New("xz block: checksum differs")
			}
		}
		out = append(out, data...)
	}
}

// block is what a block header says of the filters.
type block struct {
	x86  bool
	dict int64 // bytes
}

// readBlockHeader reads section 3.1 of the format; n is its first byte.
func readBlockHeader(src io.Reader, n byte) (b block, err error) {
	h := make([]byte, (int(n)+1)*4-1)
	if _, err := io.ReadFull(src, h); err != nil {
		return b, err
	}
	body := h[:len(h)-4]
	if crc32.Update(crc32.ChecksumIEEE([]byte{n}), crc32.IEEETable, body) != binary.LittleEndian.Uint32(h[len(body):]) {
		return b, errors.New("xz block header: checksum differs")
	}
	r := bytes.NewReader(body)
	flags, _ := r.ReadByte()
	for bit := byte(0x40); bit != 0; bit <<= 1 { // sizes, which may be there and are not needed
		if flags&bit != 0 {
			if _, err := binary.ReadUvarint(r); err != nil {
				return b, err
			}
		}
	}
	for range flags&3 + 1 {
		id, _ := binary.ReadUvarint(r)
		size, _ := binary.ReadUvarint(r)
		if size > uint64(r.Len()) {
			return b, errors.New("xz block header: filter is cut short")
		}
		props := make([]byte, size)
		io.ReadFull(r, props)
		switch {
		case id == 0x04 && size == 0 && b.dict == 0:
			b.x86 = true
		case id == 0x21 && size == 1 && props[0] < 40 && b.dict == 0:
			b.dict = int64(2|props[0]&1) << (props[0]/2 + 11)
		default:
			return b, fmt.Errorf("xz filter %#x: %w", id, ErrCompression)
		}
	}
	if b.dict == 0 {
		return b, errors.New("xz block header: no LZMA2")
	}
	return b, nil
}

// unpack reads the data of a block and the padding after it.
func (b block) unpack(src *bytes.Reader, maxSize int64) ([]byte, error) {
	before := src.Len()
	r, err := lzma.Reader2Config{DictCap: int(max(lzma.MinDictCap, min(b.dict, maxSize, maxWindow)))}.NewReader2(src)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxSize {
		return nil, fmt.Errorf("xz block: more than the %d bytes announced", maxSize)
	}
	used := int64(before - src.Len())
	if _, err := src.Seek((4-used%4)%4, io.SeekCurrent); err != nil {
		return nil, err
	}
	if b.x86 {
		undoX86(data)
	}
	return data, nil
}

// undoX86 turns the absolute targets of CALL and JMP instructions (E8, E9) back
// into relative ones. After bcj_x86 in lib/xz/xz_dec_bcj.c of the kernel, by
// Lasse Collin and Igor Pavlov, in the public domain.
func undoX86(data []byte) {
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	bits := [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	high := func(b byte) bool { return b == 0 || b == 0xff } // of a target within 16 MiB
	prev, mask := -1, uint(0)
	for i := 0; i < len(data)-4; i++ {
		if data[i]&0xfe != 0xe8 {
			continue
		}
		distance := i - prev
		prev = i
		if distance > 3 {
			mask = 0
		} else if mask = mask << (distance - 1) & 7; mask != 0 {
			if !allowed[mask] || high(data[i+4-int(bits[mask])]) {
				mask = mask<<1 | 1
				continue
			}
		}
		if !high(data[i+4]) {
			mask = mask<<1 | 1
			continue
		}
		src := binary.LittleEndian.Uint32(data[i+1:])
		var to uint32
		for {
			to = src - uint32(i) - 5
			if mask == 0 {
				break
			}
			shift := bits[mask] * 8
			if !high(byte(to >> (24 - shift))) {
				break
			}
			src = to ^ (1<<(32-shift) - 1)
		}
		to &= 0x01ffffff
		to |= -(to & 0x01000000)
		binary.LittleEndian.PutUint32(data[i+1:], to)
		i += 4
	}
}
