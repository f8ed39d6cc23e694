// Package vmlinux reads kernel images: it unpacks the ELF file vmlinux from the vmlinuz
// that a machine boots, and finds the kernel's type information in it.
package vmlinux

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// ErrCompression says that a vmlinuz is packed in a way that only the kernel
// itself can unpack here, such as LZO.
var ErrCompression = errors.New("unknown compression of the vmlinuz")

// Payload unpacks the vmlinux, an ELF file, from a bzImage
// (Documentation/arch/x86/boot.rst, protocol 2.08 of Linux 2.6.26 or later).
// The error is ErrCompression when no decompressor is known for it.
func Payload(image []byte) (vmlinux []byte, err error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("neither a vmlinuz (bzImage) nor a vmlinux")
	}
	if v := binary.LittleEndian.Uint16(image[0x206:]); v < 0x208 {
		return nil, fmt.Errorf("boot protocol %d.%02d names no payload: %w", v>>8, v&0xff, ErrCompression)
	}
	setup := uint64(image[0x1f1])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if end > uint64(len(image)) || end-start < 8 {
		return nil, fmt.Errorf("vmlinuz is cut short: payload ends at byte %d of %d", end, len(image))
	}
	vmlinux, err = unpack(image[start:end])
	if err != nil {
		return nil, fmt.Errorf("unpack vmlinuz: %w", err)
	}
	if !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
		return nil, errors.New("unpack vmlinuz: payload is not an ELF file")
	}
	return vmlinux, nil
}

// open reads a vmlinux, or that of a vmlinuz.
func open(file string) (*elf.File, error) {
	program, err := elf.Open(file)
	var format *elf.FormatError
	if !errors.As(err, &format) {
		return program, err
	}
	packed, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	unpacked, err := Payload(packed)
	if err != nil {
		return nil, err
	}
	return elf.NewFile(bytes.NewReader(unpacked))
}

// maxWindow is the most that a decompressor may look back, in bytes: what
// zstd -22 --ultra needs, the widest of the kernel's build.
const maxWindow = 128 << 20

// unpack undoes the compression of a payload. Its last four bytes are the size
// of the result: gzip ends so by itself, for the others the kernel's build
// appends it (cmd_xz_with_size and its like, scripts/Makefile.lib).
func unpack(payload []byte) ([]byte, error) {
	packed, trailer := payload[:len(payload)-4], payload[len(payload)-4:]
	size := int64(binary.LittleEndian.Uint32(trailer))
	var r io.Reader
	var err error
	switch src := bytes.NewReader(packed); {
	case bytes.HasPrefix(packed, []byte("\x1f\x8b")):
		r, err = gzip.NewReader(bytes.NewReader(payload))
	case bytes.HasPrefix(packed, []byte("BZh")):
		r = bzip2.NewReader(src)
	case bytes.HasPrefix(packed, []byte("\xfd7zXZ\x00")):
		r, err = newXZ(src, size)
	case bytes.HasPrefix(packed, []byte("\x5d\x00\x00")):
		r, err = lzma.ReaderConfig{DictCap: maxWindow}.NewReader(src)
	case bytes.HasPrefix(packed, []byte("\x28\xb5\x2f\xfd")):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			defer d.Close()
		}
		r = d
	case bytes.HasPrefix(packed, []byte("\x02\x21\x4c\x18")): // lz4 -l, the legacy frame
		r = lz4.NewReader(src)
	default:
		return nil, ErrCompression
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes where %d were announced", n, size)
	}
	return out.Bytes(), err
}
