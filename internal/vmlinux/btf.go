package vmlinux

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cilium/ebpf/btf"
)

// ErrNoBTF says that a kernel was built without type information (CONFIG_DEBUG_INFO_BTF, since Linux 5.2).
var ErrNoBTF = errors.New("the kernel has no BTF")

// ReadBTF reads the types of a kernel from its vmlinux or vmlinuz (Documentation/bpf/btf.rst). The error is
// ErrNoBTF when there are none in it, ErrCompression when it cannot be unpacked.
func ReadBTF(file string) (*btf.Spec, error) {
	spec, err := readBTF(file)
	if err != nil {
		return nil, fmt.Errorf("read types of %s: %w", file, err)
	}
	return spec, nil
}

func readBTF(file string) (*btf.Spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := f.ReadAt(magic, 0); err != nil && err != io.EOF {
		return nil, err
	}
	var image io.ReaderAt = f
	if string(magic) != elf.ELFMAG {
		packed, err := io.ReadAll(f)
		if err != nil {
			return nil, err
		}
		unpacked, err := Payload(packed)
		if err != nil {
			return nil, err
		}
		image = bytes.NewReader(unpacked)
	}
	program, err := elf.NewFile(image)
	if err != nil {
		return nil, err
	}
	section := program.Section(".BTF")
	if section == nil {
		return nil, ErrNoBTF
	}
	types, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("section .BTF: %w", err)
	}
	return btf.LoadSpecFromReader(bytes.NewReader(types))
}
