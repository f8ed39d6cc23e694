package ko

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
)

// fixture is a small module for a machine of choice, written section by section.
type fixture struct {
	class    elf.Class
	order    binary.AppendByteOrder
	machine  elf.Machine
	kind     elf.Type
	sections []fixtureSection
	symbols  []fixtureSymbol
	noSymtab bool
}

type fixtureSection struct {
	name string
	kind elf.SectionType
	data []byte
}

type fixtureSymbol struct {
	name    string
	bind    elf.SymBind
	section string // "" undefined, "*ABS*" absolute
	value   uint64
}

func newFixture(machine elf.Machine, class elf.Class, order binary.AppendByteOrder) *fixture {
	return &fixture{class: class, order: order, machine: machine, kind: elf.ET_REL}
}

func (f *fixture) add(name string, data []byte) {
	f.sections = append(f.sections, fixtureSection{name, elf.SHT_PROGBITS, data})
}

func (f *fixture) symbol(name string, bind elf.SymBind, section string, value uint64) {
	f.symbols = append(f.symbols, fixtureSymbol{name, bind, section, value})
}

func (f *fixture) u32(b []byte, v uint32) []byte { return f.order.AppendUint32(b, v) }

// word appends an unsigned long.
func (f *fixture) word(b []byte, v uint64) []byte {
	if f.class == elf.ELFCLASS64 {
		return f.order.AppendUint64(b, v)
	}
	return f.order.AppendUint32(b, uint32(v))
}

// versions adds __versions.
func (f *fixture) versions(crcs map[string]uint32, names ...string) {
	var b []byte
	for _, name := range names {
		entry := append(f.word(nil, uint64(crcs[name])), name...)
		b = append(b, append(entry, make([]byte, 64-len(entry))...)...)
	}
	f.add("__versions", b)
}

// extendedVersions adds the tables of Linux 6.14.
func (f *fixture) extendedVersions(crcs map[string]uint32, names ...string) {
	var sums []byte
	for _, name := range names {
		sums = f.u32(sums, crcs[name])
	}
	f.add("__version_ext_crcs", sums)
	f.add("__version_ext_names", []byte(strings.Join(names, "\x00")+"\x00"))
}

// thisModule adds struct module, which begins with its state, a list and its name.
func (f *fixture) thisModule(name string) {
	var b []byte
	for range 3 {
		b = f.word(b, 0)
	}
	f.add(thisModule, append(append(b, name...), make([]byte, 200)...))
}

func (f *fixture) buildID(id string) {
	b := f.u32(f.u32(f.u32(nil, 4), uint32(len(id))), 3)
	f.add(".note.gnu.build-id", append(append(b, "GNU\x00"...), id...))
}

// bytes lays the file out: header, sections, symbols, names, section headers.
func (f *fixture) bytes() []byte {
	index := map[string]int{"": 0, "*ABS*": int(elf.SHN_ABS)}
	for i, s := range f.sections {
		index[s.name] = i + 1
	}
	table, names := make([]byte, f.pick(elf.Sym64Size, elf.Sym32Size)), []byte{0}
	for _, s := range f.symbols {
		name, info, at := uint32(len(names)), byte(s.bind)<<4, uint16(index[s.section])
		names = append(append(names, s.name...), 0)
		table = f.u32(table, name)
		if f.class == elf.ELFCLASS64 {
			table = f.order.AppendUint16(append(table, info, 0), at)
			table = f.word(f.word(table, s.value), 0)
		} else {
			table = f.word(f.word(table, s.value), 0)
			table = f.order.AppendUint16(append(table, info, 0), at)
		}
	}
	sections := append([]fixtureSection{{}}, f.sections...)
	sections = append(sections,
		fixtureSection{".symtab", elf.SHT_SYMTAB, table},
		fixtureSection{".strtab", elf.SHT_STRTAB, names},
		fixtureSection{".shstrtab", elf.SHT_STRTAB, nil})
	if f.noSymtab {
		sections[len(sections)-3].kind = elf.SHT_PROGBITS
	}
	strtab, last := len(sections)-2, len(sections)-1
	titles := []byte{0}
	nameAt := make([]uint32, len(sections))
	for i := range sections {
		nameAt[i] = uint32(len(titles))
		titles = append(append(titles, sections[i].name...), 0)
	}
	sections[last].data = titles

	body := make([]byte, f.pick(64, 52))
	var headers []byte
	for i, s := range sections {
		headers = f.u32(f.u32(headers, nameAt[i]), uint32(s.kind))
		headers = f.word(f.word(headers, 0), 0) // flags, address
		headers = f.word(f.word(headers, uint64(len(body))), uint64(len(s.data)))
		headers = f.u32(f.u32(headers, uint32(strtab)), 0) // link, info
		headers = f.word(f.word(headers, 1), 0)            // alignment, entry size
		body = append(body, s.data...)
	}
	ident := append([]byte(elf.ELFMAG), byte(f.class), f.data(), 1)
	head := append(ident, make([]byte, elf.EI_NIDENT-len(ident))...)
	head = f.order.AppendUint16(head, uint16(f.kind))
	head = f.order.AppendUint16(head, uint16(f.machine))
	head = f.u32(head, 1)
	head = f.word(f.word(f.word(head, 0), 0), uint64(len(body))) // entry, program headers, section headers
	head = f.u32(head, 0)                                        // flags
	for _, v := range []int{f.pick(64, 52), 0, 0, f.pick(64, 40), len(sections), last} {
		head = f.order.AppendUint16(head, uint16(v))
	}
	copy(body, head)
	return append(body, headers...)
}

func (f *fixture) pick(wide, narrow int) int {
	if f.class == elf.ELFCLASS64 {
		return wide
	}
	return narrow
}

func (f *fixture) data() byte {
	if bytes.Equal(f.order.AppendUint16(nil, 1), []byte{1, 0}) {
		return byte(elf.ELFDATA2LSB)
	}
	return byte(elf.ELFDATA2MSB)
}
