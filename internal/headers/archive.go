package headers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"kmodctl/internal/ko"
)

var (
	errNoPackage = errors.New("is neither a .deb nor an .rpm")
	errCutShort  = errors.New("is cut short")
	errTooBig    = fmt.Errorf("is too big when unpacked: %d bytes at most", maxUnpacked)
)

// archive yields the entries of a package: *tar.Reader, or a *cpioReader.
type archive interface {
	Next() (*tar.Header, error)
	io.Reader // of the current entry's content
}

// kind is a kind of package.
type kind struct {
	payload func(data []byte) ([]byte, error) // finds the archive, which is compressed
	open    func(io.Reader) archive
}

// kindOf tells the kind by the first bytes; nil for a stranger.
func kindOf(data []byte) *kind {
	switch {
	case bytes.HasPrefix(data, []byte(arMagic)):
		return &kind{debPayload, func(r io.Reader) archive { return tar.NewReader(r) }}
	case bytes.HasPrefix(data, []byte("\xed\xab\xee\xdb")):
		return &kind{rpmPayload, func(r io.Reader) archive { return &cpioReader{src: r} }}
	}
	return nil
}

const arMagic = "!<arch>\n"

// debPayload finds data.tar.* among the members of a .deb: deb(5), ar(5).
func debPayload(data []byte) ([]byte, error) {
	const header, nameLen, sizeAt, sizeLen = 60, 16, 48, 10
	for rest := data[len(arMagic):]; len(rest) >= header; {
		name := strings.TrimRight(string(rest[:nameLen]), " /")
		size, err := strconv.ParseUint(strings.TrimRight(string(rest[sizeAt:sizeAt+sizeLen]), " "), 10, 63)
		if err != nil {
			return nil, fmt.Errorf("is damaged: size of member %q: %w", name, err)
		}
		rest = rest[header:]
		if size > uint64(len(rest)) {
			return nil, errCutShort
		}
		if strings.HasPrefix(name, "data.tar") {
			return rest[:size], nil
		}
		rest = rest[min(size+size%2, uint64(len(rest))):]
	}
	return nil, errors.New("is damaged: it has no data.tar")
}

// rpmPayload passes over a lead and two headers, the first of which ends at a multiple of
// 8 bytes: https://rpm-software-management.github.io/rpm/manual/format_v4.html.
func rpmPayload(data []byte) ([]byte, error) {
	const lead, intro, index, align = 96, 16, 16, 8
	at := uint64(lead)
	for range 2 {
		at = (at + align - 1) &^ (align - 1)
		if at+intro > uint64(len(data)) {
			return nil, errCutShort
		}
		header := data[at:]
		if !bytes.HasPrefix(header, []byte("\x8e\xad\xe8\x01")) {
			return nil, errors.New("is damaged: no header where one should be")
		}
		entries, store := binary.BigEndian.Uint32(header[8:]), binary.BigEndian.Uint32(header[12:])
		at += intro + uint64(entries)*index + uint64(store)
	}
	if at > uint64(len(data)) {
		return nil, errCutShort
	}
	return data[at:], nil
}

// decompress returns the content of a payload; its compression is told by its first bytes.
func decompress(data []byte) (io.ReadCloser, error) {
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")):
		return gzip.NewReader(bytes.NewReader(data))
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		if err := ko.CheckXZ(data); err != nil {
			return nil, err
		}
		r, err := xz.ReaderConfig{DictCap: lzma.MinDictCap, SingleStream: true}.NewReader(bytes.NewReader(data))
		return io.NopCloser(r), err
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		const window = 128 << 20 // bytes; zstd itself asks for --long=28 above that
		r, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return r.IOReadCloser(), nil
	case bytes.HasPrefix(data, []byte("BZh")), bytes.HasPrefix(data, []byte("\x5d\x00\x00")):
		return nil, errors.New("is compressed by bzip2 or lzma, which kmodctl does not know")
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// bounded ends with an error when ctx is done, or there is more than left bytes.
type bounded struct {
	ctx  context.Context
	src  io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.src.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooBig
	}
	return n, err
}

// cpioReader shows a cpio archive, in the "new ASCII" form of cpio(5), as the tar archive that
// it could be.
type cpioReader struct {
	src  io.Reader
	left int64 // of the current entry's content
	pad  int64 // behind it

	held  map[int64][]*tar.Header // by inode: names of files whose content comes with the last of them
	ready []*tar.Header
	ended bool
}

// Read is tar.Reader's.
func (c *cpioReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.src.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, whole(err)
}

// Next is tar.Reader's.
func (c *cpioReader) Next() (*tar.Header, error) {
	for len(c.ready) == 0 {
		if c.ended {
			return nil, io.EOF
		}
		if err := c.read(); err != nil {
			return nil, err
		}
	}
	next := c.ready[0]
	c.ready = c.ready[1:]
	return next, nil
}

// read reads a header and its name, and of a symbolic link where it leads.
func (c *cpioReader) read() error {
	const inode, mode, links, size, nameSize, fields = 0, 1, 4, 6, 11, 13
	const digits, magic, align, maxName = 8, "070701", 4, 4096
	if _, err := io.CopyN(io.Discard, c.src, c.left+c.pad); err != nil {
		return whole(err)
	}
	head := make([]byte, len(magic)+fields*digits)
	if _, err := io.ReadFull(c.src, head); err != nil {
		return whole(err)
	}
	if string(head[:len(magic)]) != magic {
		return errors.New("is no cpio archive of a kind that kmodctl knows")
	}
	var value [fields]int64
	for i := range value {
		text := head[len(magic)+i*digits:][:digits]
		n, err := strconv.ParseUint(string(text), 16, 32)
		if err != nil {
			return fmt.Errorf("is damaged: %q is no number of a cpio header", text)
		}
		value[i] = int64(n)
	}
	padding := func(n int64) int64 { return -n & (align - 1) }
	text := func(size, before int64) (string, error) {
		if size < 1 || size > maxName {
			return "", fmt.Errorf("is damaged: a name of %d bytes", size)
		}
		name := make([]byte, size+padding(before+size))
		_, err := io.ReadFull(c.src, name)
		return strings.TrimRight(string(name[:size]), "\x00"), whole(err)
	}
	name, err := text(value[nameSize], int64(len(head)))
	if err != nil {
		return err
	}
	c.left, c.pad = value[size], padding(value[size])
	h := &tar.Header{Name: name, Mode: value[mode], Size: value[size]}
	const kind, regular, folder, symlink = 0o170000, 0o100000, 0o040000, 0o120000
	switch h.Mode & kind {
	case regular:
		h.Typeflag = tar.TypeReg
	case folder:
		h.Typeflag = tar.TypeDir
	case symlink:
		h.Typeflag = tar.TypeSymlink
		c.left, c.pad = 0, 0
		if h.Linkname, err = text(h.Size, 0); err != nil {
			return err
		}
	default:
		h.Typeflag = tar.TypeChar // whatever it is, it is refused
	}
	c.arrange(h, value[inode], value[links])
	return nil
}

// arrange puts an entry among those that are ready. Of a file with several names rpm gives
// the content once, with the last one.
func (c *cpioReader) arrange(h *tar.Header, inode, links int64) {
	switch {
	case h.Name == "TRAILER!!!":
		c.ended = true
		for _, empty := range c.held {
			c.ready = append(c.ready, empty...)
		}
	case h.Typeflag == tar.TypeReg && links > 1 && h.Size == 0:
		if c.held == nil {
			c.held = map[int64][]*tar.Header{}
		}
		c.held[inode] = append(c.held[inode], h)
	default:
		c.ready = append(c.ready, h)
		if h.Typeflag != tar.TypeReg {
			return
		}
		for _, other := range c.held[inode] {
			other.Typeflag, other.Linkname = tar.TypeLink, h.Name
			c.ready = append(c.ready, other)
		}
		delete(c.held, inode)
	}
}

// whole is err, of a source that must not end here.
func whole(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
