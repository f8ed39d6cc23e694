package ko

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compressions are those of kernel modules, as Decompress names them, and what they add to the name
// of a file after .ko (kernel scripts/Makefile.modinst, kmod's kmod_exts).
var compressions = []struct{ name, suffix string }{{"gzip", ".gz"}, {"xz", ".xz"}, {"zstd", ".zst"}}

// Suffix is what the name of a module's file has after .ko: ".xz" for "xz", "" for no compression.
func Suffix(compression string) string {
	for _, c := range compressions {
		if c.name == compression {
			return c.suffix
		}
	}
	return ""
}

// CompressionOf is the compression that a file name tells of, "" for that of a plain .ko; ok is
// false when it is not the name of a module.
func CompressionOf(file string) (compression string, ok bool) {
	_, ending, ok := strings.Cut(path.Base(file), ".ko")
	if !ok || ending == "" {
		return "", ok
	}
	for _, c := range compressions {
		if c.suffix == ending {
			return c.name, true
		}
	}
	return "", false
}

// Compress is the reverse of Decompress, for "gzip", "xz" and "zstd"; "" returns elf as it is. The same bytes come out
// each time. What it writes, the decoders in kernels with CONFIG_MODULE_DECOMPRESS read (since 5.17): an xz file is one stream with
// a CRC32 and a dictionary of 1 MiB, as scripts/Makefile.modinst has it made; a CRC64, xz(1)'s own choice,
// is refused by lib/xz with EINVAL. zstd and gzip files are one frame.
func Compress(elf []byte, compression string) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(len(elf) / 4)
	w, err := compressor(&b, compression)
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if w == nil {
		return elf, nil
	}
	if _, err = w.Write(elf); err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return b.Bytes(), nil
}

// compressor is nil for no compression.
func compressor(to io.Writer, compression string) (io.WriteCloser, error) {
	const dict = 1 << 20 // bytes: it is memory that the kernel takes to decompress
	switch compression {
	case "":
		return nil, nil
	case "gzip":
		return gzip.NewWriterLevel(to, gzip.BestCompression)
	case "xz":
		return xz.WriterConfig{CheckSum: xz.CRC32, DictCap: dict}.NewWriter(to)
	case "zstd": // one goroutine: the frame does not depend on the machine
		return zstd.NewWriter(to, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	}
	return nil, fmt.Errorf("unknown compression %q", compression)
}
