package vmlinux

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
)

// ErrNoExports says that a kernel image has no table of exported symbols that could be read here: it was built without
// modules, or for a machine whose tables hold addresses that are filled in at boot.
var ErrNoExports = errors.New("no readable table of exported symbols")

// Export is a symbol that a kernel offers to modules.
type Export struct {
	Name      string
	GPL       bool   // EXPORT_SYMBOL_GPL
	Namespace string // EXPORT_SYMBOL_NS, since Linux 5.4
	CRC       uint32 // as in Module.symvers; meaningless unless HasCRC
	HasCRC    bool   // the kernel has CONFIG_MODVERSIONS
}

// exportsOf reads the tables of include/linux/export-internal.h: of each symbol, in __ksymtab or __ksymtab_gpl, the distances
// from three words of 32 bits to its value, its name and its namespace; and in __kcrctab or __kcrctab_gpl its CRC. (That is
// CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, which x86 and others have since Linux 4.19; the namespace is there since 5.4.)
func exportsOf(program *elf.File) ([]Export, error) {
	texts := program.Section("__ksymtab_strings")
	if texts == nil {
		return nil, ErrNoExports
	}
	names, err := texts.Data()
	if err != nil {
		return nil, fmt.Errorf("section %s: %w", texts.Name, err)
	}
	var list []Export
	for _, suffix := range []string{"", "_gpl"} {
		table := program.Section("__ksymtab" + suffix)
		if table == nil {
			continue
		}
		entries, err := table.Data()
		if err != nil {
			return nil, fmt.Errorf("section %s: %w", table.Name, err)
		}
		var crcs []byte
		if s := program.Section("__kcrctab" + suffix); s != nil {
			if crcs, err = s.Data(); err != nil {
				return nil, fmt.Errorf("section %s: %w", s.Name, err)
			}
		}
		const entry = 12
		if len(entries)%entry != 0 || crcs != nil && len(crcs)/4 != len(entries)/entry {
			return nil, ErrNoExports
		}
		// text follows the distance that stands at offset; none is for symbols of assembler, which have no namespace.
		text := func(offset int) (string, bool) {
			if program.ByteOrder.Uint32(entries[offset:]) == 0 {
				return "", true
			}
			at := table.Addr + uint64(offset) + uint64(int64(int32(program.ByteOrder.Uint32(entries[offset:])))) - texts.Addr
			if at >= uint64(len(names)) {
				return "", false
			}
			end := bytes.IndexByte(names[at:], 0)
			return string(names[at : at+uint64(max(end, 0))]), end >= 0
		}
		for i := 0; i < len(entries); i += entry {
			e := Export{GPL: suffix == "_gpl"}
			var named, spaced bool
			e.Name, named = text(i + 4)
			e.Namespace, spaced = text(i + 8)
			if !named || !spaced || e.Name == "" {
				return nil, ErrNoExports
			}
			if e.HasCRC = crcs != nil; e.HasCRC {
				e.CRC = program.ByteOrder.Uint32(crcs[i/entry*4:])
			}
			list = append(list, e)
		}
	}
	return list, nil
}
