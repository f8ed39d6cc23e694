package ko

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxDict bounds the LZMA2 dictionary in bytes: that of xz -9. Kernels are built
// with 1 MiB (scripts/Makefile.modinst).
const maxDict = 64 << 20

// unxz reads one stream, as lib/xz of the kernel does.
func unxz(data []byte, limit int64) ([]byte, error) {
	if err := CheckXZ(data); err != nil {
		return nil, err
	}
	// The decoder takes the larger of DictCap and the file's own; the default would be 8 MiB.
	r, err := xz.ReaderConfig{DictCap: lzma.MinDictCap, SingleStream: true}.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return readAll(r, len(data), limit)
}

// CheckXZ walks the blocks of the first stream of an xz file and refuses a dictionary over
// maxDict. The decoder allocates what a header of a few bytes asks for, up to
// 4 GiB, and running out of memory cannot be recovered from. The format is
// https://tukaani.org/xz/xz-file-format.txt, section 3.
func CheckXZ(data []byte) error {
	const streamHeader, blockEnd = 12, 0
	checkSizes := [16]int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}
	if len(data) < streamHeader {
		return io.ErrUnexpectedEOF
	}
	check := checkSizes[data[7]&0xf]
	for at := streamHeader; ; {
		if at >= len(data) {
			return io.ErrUnexpectedEOF
		}
		if data[at] == 0 { // the index: no more blocks
			return nil
		}
		size := (int(data[at]) + 1) * 4
		if size > len(data)-at {
			return io.ErrUnexpectedEOF
		}
		if err := checkFilter(data[at : at+size]); err != nil {
			return err
		}
		at += size
		for {
			// The index and the footer follow, so six bytes are always there.
			if at+6 > len(data) {
				return io.ErrUnexpectedEOF
			}
			control := data[at]
			if control == blockEnd {
				at++
				break
			}
			switch {
			case control <= 2: // stored: control, size - 1
				at += 3 + int(binary.BigEndian.Uint16(data[at+1:])) + 1
			case control >= 0xc0: // LZMA: control, two sizes - 1, properties
				at += 6 + int(binary.BigEndian.Uint16(data[at+3:])) + 1
			case control >= 0x80:
				at += 5 + int(binary.BigEndian.Uint16(data[at+3:])) + 1
			default:
				return fmt.Errorf("LZMA2 control byte %#x at byte %d", control, at)
			}
		}
		at = (at+3)&^3 + check
	}
}

// checkFilter expects LZMA2 as the only filter of a block header.
func checkFilter(header []byte) error {
	flags, rest := header[1], header[2:]
	for _, sizePresent := range []byte{0x40, 0x80} {
		if flags&sizePresent != 0 {
			_, n := binary.Uvarint(rest)
			rest = rest[max(n, 0):]
		}
	}
	if flags&3 != 0 || len(rest) < 3 || rest[0] != 0x21 || rest[1] != 1 {
		return errors.New("filters other than LZMA2")
	}
	dict, err := lzma.DecodeDictCap(rest[2])
	if err != nil {
		return err
	}
	if dict > maxDict {
		return fmt.Errorf("dictionary of %d bytes, the limit is %d: %w", dict, maxDict, ErrTooLarge)
	}
	return nil
}
