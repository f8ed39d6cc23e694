package loader

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

// module is a file that is ready for finit_module(2).
type module struct {
	path  string
	file  *os.File // the file itself; of one that the kernel cannot decompress a memfd with its content
	flags int      // of finit_module(2)
}

// compressedFile is MODULE_INIT_COMPRESSED_FILE, include/uapi/linux/module.h, since Linux 5.17.
const compressedFile = 4

// openModule opens a .ko and looks at its first bytes only: what else it holds is
// the kernel's to judge.
func openModule(root kernel.Root, path string) (*module, error) {
	// O_NONBLOCK: a FIFO must not hold us. Read-only: a writer gives ETXTBSY.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	m := &module{path: path, file: f}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, cmp.Or[error](err, &ko.FormatError{Path: path, Reason: "not a regular file", Err: ko.ErrNotModule})
	}
	head := make([]byte, 8)
	n, _ := f.ReadAt(head, 0)
	switch format := compressionOf(head[:n]); {
	case format == "":
	case format == readLine(under(root, "sys/module/compression")):
		m.flags = compressedFile
	default:
		if err := m.decompress(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return m, nil
}

// compressionOf names the compression that a file begins with, as the kernel's
// /sys/module/compression does: "" when there is none, "other" for an xz file whose checksum
// the kernel's decoder does not know: it has none but crc32, xz(1) writes crc64.
func compressionOf(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return "gzip"
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return "zstd"
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		const none, crc32 = 0, 1 // of the stream's flags: xz-file-format.txt, 2.1.1.2
		if len(head) > 7 && (head[7] == none || head[7] == crc32) {
			return "xz"
		}
		return "other"
	}
	return ""
}

// decompress puts a memfd with the module's content in place of the file.
func (m *module) decompress() error {
	data, err := m.read()
	if err != nil {
		return err
	}
	elf, _, err := ko.Decompress(data)
	if err != nil {
		return m.named(err)
	}
	f, err := memfd(filepath.Base(m.path), elf)
	if err != nil {
		return err
	}
	m.file.Close()
	m.file, m.flags = f, 0
	return nil
}

func (m *module) read() ([]byte, error) {
	data, err := io.ReadAll(io.NewSectionReader(m.file, 0, math.MaxInt64))
	return data, m.named(err)
}

// info is what the file says of itself.
func (m *module) info() (*ko.Info, error) {
	data, err := m.read()
	if err != nil {
		return nil, err
	}
	info, err := ko.Read(data)
	return info, m.named(err)
}

// named is err with the file's path in it, once.
func (m *module) named(err error) error {
	var format *ko.FormatError
	if errors.As(err, &format) && format.Path == "" {
		format.Path = m.path
		return err
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.path, err)
	}
	return nil
}

// memfd puts data into memfd_create(2). Unlike a file that is open for writing,
// it gives no ETXTBSY.
func memfd(name string, data []byte) (*os.File, error) {
	// MFD_NOEXEC_SEAL, since Linux 6.3, is required under vm.memfd_noexec=2.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
