package ko

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// moduleLayout is the symbol whose CRC stands for the layout of struct module.
// It is in the table of CRCs although no module refers to it.
const moduleLayout = "module_layout"

// symbol is an entry of the symbol table.
type symbol struct {
	name  []byte
	bind  elf.SymBind
	kind  elf.SymType
	index elf.SectionIndex
	value uint64
}

// readSymbols fills in Imports and Exports.
func (i *Info) readSymbols(o *object) error {
	symbols, err := o.symbols()
	if err != nil {
		return err
	}
	versions, err := o.versions()
	if err != nil {
		return err
	}
	i.Modversions = versions != nil
	i.LayoutCRC = versions[moduleLayout]
	for _, s := range symbols {
		if name, ok := strings.CutPrefix(string(s.name), "__param_str_"); ok { // __module_param_call, linux/moduleparam.h
			i.undescribed(name)
		}
		if s.index == elf.SHN_COMMON && i.Common == "" {
			i.Common = string(s.name)
		}
		if !imported(s) {
			continue
		}
		crc, ok := versions[string(s.name)]
		i.Imports = append(i.Imports, Import{Name: string(s.name), CRC: crc, HasCRC: ok, Weak: s.bind == elf.STB_WEAK})
	}
	i.Exports = o.exports(symbols)
	i.readLimits(o, symbols)
	return nil
}

// readLimits reads how much an array or a string can hold: the first word of struct kparam_array and of struct kparam_string,
// linux/moduleparam.h.
func (i *Info) readLimits(o *object, symbols []symbol) {
	for _, s := range symbols {
		name, isArray := strings.CutPrefix(string(s.name), "__param_arr_")
		name, isString := strings.CutPrefix(name, "__param_string_")
		at := o.sectionOf(s)
		if !isArray && !isString || at == nil || at.size < 4 || s.value > at.size-4 {
			continue
		}
		n := slices.IndexFunc(i.Params, func(p Param) bool { return p.Name == name })
		if limit := o.order.Uint32(o.bytes(at)[s.value:]); n >= 0 && limit <= 1<<30 {
			i.Params[n].Max = int(limit)
		}
	}
}

// symbols reads the symbol table. There is exactly one in what a kernel takes.
func (o *object) symbols() ([]symbol, error) {
	n := slices.IndexFunc(o.sections, func(s section) bool { return s.kind == elf.SHT_SYMTAB })
	if n < 0 {
		return nil, &FormatError{Section: ".symtab", Err: ErrStripped}
	}
	table := &o.sections[n]
	if uint64(table.link) >= uint64(len(o.sections)) {
		return nil, &FormatError{Section: table.name, Reason: "no string table", Err: ErrMalformed}
	}
	names := o.bytes(&o.sections[table.link])
	size := elf.Sym64Size
	if o.class == elf.ELFCLASS32 {
		size = elf.Sym32Size
	}
	list := make([]symbol, 0, table.size/uint64(size))
	for rest := o.bytes(table); len(rest) >= size; rest = rest[size:] {
		var s symbol
		info := rest[4]
		if o.class == elf.ELFCLASS64 {
			s.index = elf.SectionIndex(o.order.Uint16(rest[6:]))
			s.value = o.order.Uint64(rest[8:])
		} else {
			info = rest[12]
			s.index = elf.SectionIndex(o.order.Uint16(rest[14:]))
			s.value = uint64(o.order.Uint32(rest[4:]))
		}
		s.bind, s.kind = elf.ST_BIND(info), elf.ST_TYPE(info)
		var ok bool
		if s.name, ok = cString(names, o.order.Uint32(rest)); !ok {
			return nil, &FormatError{Section: table.name, Offset: int64(table.offset+table.size) - int64(len(rest)),
				Reason: fmt.Sprintf("symbol %d: bad name", len(list)), Err: ErrMalformed}
		}
		list = append(list, s)
	}
	return list, nil
}

// imported tells the undefined symbols that the kernel resolves at load from
// those that its linker makes up (handle_symbol in scripts/mod/modpost.c).
func imported(s symbol) bool {
	const sparcRegister = elf.SymType(13) // STT_SPARC_REGISTER
	if s.index != elf.SHN_UNDEF || len(s.name) == 0 || s.bind == elf.STB_LOCAL || s.kind == sparcRegister {
		return false
	}
	switch string(s.name) {
	case "_GLOBAL_OFFSET_TABLE_", "__this_module", ".TOC.":
		return false
	}
	return true
}

// versions reads the CRCs that the module expects of the symbols it imports;
// nil when it has none. When both tables are present the kernel uses the
// extended one only.
func (o *object) versions() (map[string]uint32, error) {
	crcs, names := o.find("__version_ext_crcs"), o.find("__version_ext_names")
	switch {
	case crcs != nil && names != nil:
		return o.extendedVersions(o.bytes(crcs), o.bytes(names))
	case crcs != nil || names != nil:
		return nil, &FormatError{Section: "__version_ext_crcs", Reason: "__version_ext_crcs and __version_ext_names go together, one is missing", Err: ErrMalformed}
	case !o.has("__versions"):
		return nil, nil
	}
	// struct modversion_info { unsigned long crc; char name[64 - sizeof(long)]; }
	const entry = 64
	versions := map[string]uint32{}
	word := layouts[o.class].word
	for rest := o.section("__versions"); len(rest) >= entry; rest = rest[entry:] {
		name, _, _ := bytes.Cut(rest[word:entry], []byte{0})
		versions[string(name)] = uint32(o.word(rest))
	}
	return versions, nil
}

// extendedVersions joins __version_ext_crcs, a u32 per symbol, with
// __version_ext_names, their NUL-terminated names in the same order.
func (o *object) extendedVersions(crcs, names []byte) (map[string]uint32, error) {
	versions := map[string]uint32{}
	for ; len(crcs) >= 4; crcs = crcs[4:] {
		name, rest, ok := bytes.Cut(names, []byte{0})
		if !ok {
			return nil, &FormatError{Section: "__version_ext_names", Reason: fmt.Sprintf("ends after %d names, %d CRCs are left", len(versions), len(crcs)/4), Err: ErrMalformed}
		}
		versions[string(name)] = o.order.Uint32(crcs)
		names = rest
	}
	return versions, nil
}

// exports finds what EXPORT_SYMBOL left for symbol X: __ksymtab_X in section
// __ksymtab or __ksymtab_gpl, __kstrtabns_X at its namespace (Linux 5.4), and
// __crc_X, which is the CRC itself (an absolute symbol) or is at it: in
// __kcrctab since Linux 5.19, before that in .rodata with MODULE_REL_CRCS.
func (o *object) exports(symbols []symbol) []Export {
	var list []Export
	crcs, namespaces := map[string]uint32{}, map[string]string{}
	for _, s := range symbols {
		full := string(s.name)
		if name, ok := strings.CutPrefix(full, "__ksymtab_"); ok {
			if at := o.sectionOf(s); at != nil && strings.HasPrefix(at.name, "__ksymtab") {
				list = append(list, Export{Name: name, GPL: strings.HasPrefix(at.name, "__ksymtab_gpl")})
			}
		} else if name, ok := strings.CutPrefix(full, "__kstrtabns_"); ok {
			if at := o.sectionOf(s); at != nil && s.value < at.size {
				ns, _ := cString(o.bytes(at)[s.value:], 0)
				namespaces[name] = string(ns)
			}
		} else if name, ok := strings.CutPrefix(full, "__crc_"); ok {
			if s.index == elf.SHN_ABS {
				crcs[name] = uint32(s.value)
			} else if at := o.sectionOf(s); at != nil && at.size >= 4 && s.value <= at.size-4 {
				crcs[name] = o.order.Uint32(o.bytes(at)[s.value:])
			}
		}
	}
	for i := range list {
		e := &list[i]
		e.Namespace = namespaces[e.Name]
		e.CRC, e.HasCRC = crcs[e.Name]
	}
	return list
}

// sectionOf returns the section that defines s, nil for none.
func (o *object) sectionOf(s symbol) *section {
	if s.index == elf.SHN_UNDEF || int(s.index) >= len(o.sections) {
		return nil
	}
	return &o.sections[s.index]
}
