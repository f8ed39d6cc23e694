package vmlinux

import (
	"bytes"
	"debug/elf"
	"slices"
	"strings"
)

// BuiltinNames are the names that parts of the kernel have in /sys/module, where no module can have them too, sorted: those with
// a parameter that sysfs shows, or with a version (param_sysfs_builtin and version_sysfs_builtin, kernel/params.c). It reads
// the tables of 64-bit little-endian kernels since Linux 5.11, and is nil where there is none.
func (i *Image) BuiltinNames() (names []string) {
	const (
		param      = 40 // struct kernel_param, linux/moduleparam.h
		permission = 24 // of it, a u16
		version    = 72 // struct module_version_attribute, linux/module.h
		module     = 56 // of it, the module's name
	)
	if i.program.Class != elf.ELFCLASS64 || i.program.Data != elf.ELFDATA2LSB {
		return nil
	}
	i.entries("__param", param, func(entry []byte) {
		param := i.text(entry)
		if i.program.ByteOrder.Uint16(entry[permission:]) == 0 || param == "" {
			return
		}
		if name, _, ok := strings.Cut(param, "."); ok {
			names = append(names, name)
		} else {
			names = append(names, "kernel") // core_param
		}
	})
	i.entries("__modver", version, func(entry []byte) {
		if name := i.text(entry[module:]); name != "" {
			names = append(names, name)
		}
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// entries calls do with each entry of a table that fills a section.
func (i *Image) entries(section string, size int, do func(entry []byte)) {
	s := i.program.Section(section)
	if s == nil {
		return
	}
	table, err := s.Data()
	if err != nil || len(table)%size != 0 {
		return
	}
	for ; len(table) > 0; table = table[size:] {
		do(table[:size])
	}
}

// text is what a pointer leads to, "" when that is no text of the image.
func (i *Image) text(pointer []byte) string {
	addr := i.program.ByteOrder.Uint64(pointer)
	for _, s := range i.program.Sections {
		if s.Type != elf.SHT_PROGBITS || s.Addr == 0 || addr < s.Addr || addr-s.Addr >= s.Size {
			continue
		}
		buf := make([]byte, 64) // MODULE_NAME_LEN, and a parameter's name is behind the dot
		n, _ := s.ReadAt(buf, int64(addr-s.Addr))
		text, _, _ := bytes.Cut(buf[:n], []byte{0})
		return string(text)
	}
	return ""
}
