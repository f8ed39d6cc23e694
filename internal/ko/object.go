package ko

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// maxName bounds the name of a section or symbol in bytes. The kernel's own
// limit is KSYM_NAME_LEN: 512 since Linux 6.1, 128 before.
const maxName = 1024

// object is a relocatable ELF file in memory. Its reader is not debug/elf's,
// which panics on some bad files, decompresses sections without bound and does
// not tell a truncated file from a malformed one; only its constants are used.
type object struct {
	data     []byte
	order    binary.ByteOrder
	class    elf.Class
	machine  elf.Machine
	sections []section
	end      int64 // first byte behind all sections and headers
}

// section is a section header; offset and size were checked against the file.
type section struct {
	name         string
	kind         elf.SectionType
	link         uint32
	offset, size uint64
	header       []byte // as it is in the file
}

// header offsets that differ between the two classes: elf.Header64, elf.Header32.
type layout struct{ header, shoff, shentsize, word int }

var layouts = map[elf.Class]layout{
	elf.ELFCLASS64: {header: 64, shoff: 0x28, shentsize: 0x3a, word: 8},
	elf.ELFCLASS32: {header: 52, shoff: 0x20, shentsize: 0x2e, word: 4},
}

// readObject checks the headers of data and that every section lies inside it.
func readObject(data []byte) (*object, error) {
	magic := data[:min(len(data), len(elf.ELFMAG))]
	switch {
	case len(data) == 0:
		return nil, &FormatError{Reason: "empty file", Err: ErrTruncated}
	case !strings.HasPrefix(elf.ELFMAG, string(magic)):
		return nil, &FormatError{Err: ErrNotELF}
	case len(data) < elf.EI_NIDENT:
		return nil, truncated("ELF header", 0, elf.EI_NIDENT, data)
	}
	o := &object{data: data, class: elf.Class(data[elf.EI_CLASS])}
	l, ok := layouts[o.class]
	if !ok {
		return nil, &FormatError{Offset: elf.EI_CLASS, Reason: fmt.Sprintf("ELF class %d", data[elf.EI_CLASS]), Err: ErrMalformed}
	}
	switch elf.Data(data[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		o.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		o.order = binary.BigEndian
	default:
		return nil, &FormatError{Offset: elf.EI_DATA, Reason: fmt.Sprintf("ELF byte order %d", data[elf.EI_DATA]), Err: ErrMalformed}
	}
	if len(data) < l.header {
		return nil, truncated("ELF header", 0, uint64(l.header), data)
	}
	o.machine = elf.Machine(o.order.Uint16(data[0x12:]))
	if kind := elf.Type(o.order.Uint16(data[0x10:])); kind != elf.ET_REL {
		return nil, &FormatError{Reason: fmt.Sprintf("ELF type %v, a module is ET_REL", kind), Err: ErrNotModule}
	}
	return o, o.readSections(l)
}

func (o *object) readSections(l layout) error {
	var (
		shoff    = o.word(o.data[l.shoff:])
		size     = uint64(o.order.Uint16(o.data[l.shentsize:]))
		count    = uint64(o.order.Uint16(o.data[l.shentsize+2:]))
		strndx   = uint64(o.order.Uint16(o.data[l.shentsize+4:]))
		wantSize = uint64(16 + 6*l.word) // elf.Section64, elf.Section32
	)
	// As the kernel: elf_validity_check in kernel/module/main.c.
	if count == 0 || size != wantSize || strndx == 0 || strndx >= count {
		return &FormatError{Reason: fmt.Sprintf("ELF header: %d section headers of %d bytes, names in number %d", count, size, strndx), Err: ErrMalformed}
	}
	if !o.inside(shoff, count*size) {
		return truncated("section headers", shoff, count*size, o.data)
	}
	o.end = int64(max(shoff+count*size, uint64(l.header)))
	names := make([]uint32, count)
	o.sections = make([]section, count)
	for i := range o.sections {
		h := o.data[shoff+uint64(i)*size:]
		names[i] = o.order.Uint32(h)
		o.sections[i] = section{
			kind:   elf.SectionType(o.order.Uint32(h[4:])),
			offset: o.word(h[8+2*l.word:]),
			size:   o.word(h[8+3*l.word:]),
			link:   o.order.Uint32(h[8+4*l.word:]),
			header: h[:size],
		}
	}
	// Names first, so that an error can say which section it is about.
	strtab := &o.sections[strndx]
	if strtab.kind == elf.SHT_NOBITS || !o.inside(strtab.offset, strtab.size) {
		return truncated("section names", strtab.offset, strtab.size, o.data)
	}
	for i := range o.sections {
		s := &o.sections[i]
		name, ok := cString(o.bytes(strtab), names[i])
		if !ok {
			return &FormatError{Offset: int64(shoff + uint64(i)*size), Reason: fmt.Sprintf("section %d: bad name", i), Err: ErrMalformed}
		}
		s.name = string(name)
		if s.kind == elf.SHT_NULL || s.kind == elf.SHT_NOBITS {
			s.offset, s.size = 0, 0 // nothing of it is in the file
			continue
		}
		if !o.inside(s.offset, s.size) {
			return truncated(s.name, s.offset, s.size, o.data)
		}
		o.end = max(o.end, int64(s.offset+s.size))
	}
	return nil
}

// word reads an unsigned long of the module's machine.
func (o *object) word(b []byte) uint64 {
	if o.class == elf.ELFCLASS64 {
		return o.order.Uint64(b)
	}
	return uint64(o.order.Uint32(b))
}

func (o *object) inside(offset, size uint64) bool {
	n := uint64(len(o.data))
	return offset <= n && size <= n-offset
}

func (o *object) bytes(s *section) []byte { return o.data[s.offset : s.offset+s.size] }

func (o *object) find(name string) *section {
	for i := range o.sections {
		if o.sections[i].name == name {
			return &o.sections[i]
		}
	}
	return nil
}

func (o *object) has(name string) bool { return o.find(name) != nil }

// count returns how many sections are called name.
func (o *object) count(name string) (n int) {
	for i := range o.sections {
		if o.sections[i].name == name {
			n++
		}
	}
	return n
}

// writeExec names the sections that are writable and executable, which a kernel refuses
// (module_enforce_rwx_sections, kernel/module/strict_rwx.c).
func (o *object) writeExec() (names []string) {
	const both = uint64(elf.SHF_WRITE | elf.SHF_EXECINSTR)
	for i := range o.sections {
		if s := &o.sections[i]; o.word(s.header[8:])&both == both {
			names = append(names, s.name)
		}
	}
	return names
}

// section returns the content of the first section called name, nil without one.
func (o *object) section(name string) []byte {
	if s := o.find(name); s != nil {
		return o.bytes(s)
	}
	return nil
}

// truncated says that size bytes at offset are not all in data.
func truncated(what string, offset, size uint64, data []byte) error {
	return &FormatError{Section: what, Offset: int64(min(offset, maxOffset)),
		Reason: fmt.Sprintf("%d bytes long, the file ends at byte %d", size, len(data)), Err: ErrTruncated}
}

const maxOffset = 1<<63 - 1

// cString returns the NUL-terminated string at offset of a string table.
func cString(table []byte, offset uint32) ([]byte, bool) {
	if uint64(offset) >= uint64(len(table)) {
		return nil, false
	}
	s := table[offset:]
	end := bytes.IndexByte(s[:min(len(s), maxName)], 0)
	if end < 0 {
		return nil, false
	}
	return s[:end], true
}

// buildID returns the description of the GNU build-id note in hex, "" without one.
func buildID(o *object) string {
	const (
		header = 16 // name size, description size, type, "GNU\0"
		kind   = 3  // NT_GNU_BUILD_ID
	)
	note := o.section(".note.gnu.build-id")
	if len(note) < header || o.order.Uint32(note[8:]) != kind || string(note[12:header]) != "GNU\x00" {
		return ""
	}
	id := note[header:]
	return hex.EncodeToString(id[:min(uint64(len(id)), uint64(o.order.Uint32(note[4:])))])
}
