package vmlinux

import (
	"bytes"
	"errors"
	"fmt"

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
	program, err := open(file)
	if err != nil {
		return nil, err
	}
	defer program.Close()
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
