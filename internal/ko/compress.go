package ko

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxSize bounds a module in bytes, on disk and decompressed: some 25 times the
// largest of Debian 6.1, amdgpu with 19 MB.
const maxSize = 512 << 20

// Decompress returns the module in data without its compression, which is told
// by its magic bytes and not by a file name: "gzip", "xz" or "zstd", "" when
// data was not compressed (it is then returned as it is). Errors are *FormatError.
func Decompress(data []byte) (elf []byte, compression string, err error) {
	return decompress(data, maxSize)
}

func decompress(data []byte, limit int64) (elf []byte, compression string, err error) {
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")):
		compression = "gzip"
		elf, err = gunzip(data, limit)
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		compression = "xz"
		elf, err = unxz(data, limit)
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		compression = "zstd"
		elf, err = unzstd(data, limit)
	default:
		return data, "", nil
	}
	if err == nil {
		return elf, compression, nil
	}
	bad := &FormatError{Reason: fmt.Sprintf("decompress %s: %v", compression, err), Err: ErrMalformed}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		bad.Err = ErrTruncated
	case errors.Is(err, ErrTooLarge), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		bad.Err = ErrTooLarge
	}
	return nil, compression, bad
}

func gunzip(data []byte, limit int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return readAll(r, len(data), limit)
}

func unzstd(data []byte, limit int64) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(limit)))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(data, nil)
}

// readAll reads r to its end, at most limit bytes. Modules shrink to about a
// fifth, so a buffer of four times the input rarely grows more than once.
func readAll(r io.Reader, compressed int, limit int64) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(int(min(4*int64(compressed), limit)) + bytes.MinRead)
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, ErrTooLarge
	}
	return b.Bytes(), nil
}
