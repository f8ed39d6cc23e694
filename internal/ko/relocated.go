package ko

import "debug/elf"

// relocated names the first section whose relocations find their places filled: a second linker has run over a finished
// module. Kernels of x86-64 refuse it since Linux 4.15 (apply_relocate_add, arch/x86/kernel/module.c); others do not look.
func (o *object) relocated() string {
	if o.machine != elf.EM_X86_64 || o.class != elf.ELFCLASS64 {
		return ""
	}
	for i := range o.sections {
		relocations := &o.sections[i]
		target := o.order.Uint32(relocations.header[44:]) // sh_info
		if relocations.kind != elf.SHT_RELA || uint64(target) >= uint64(len(o.sections)) {
			continue
		}
		s := &o.sections[target]
		if elf.SectionFlag(o.word(s.header[8:]))&elf.SHF_ALLOC != 0 && o.filled(o.bytes(relocations), o.bytes(s)) {
			return s.name
		}
	}
	return ""
}

// filled reports whether a relocation's place in content is not zero.
func (o *object) filled(relocations, content []byte) bool {
	const entry = 24 // elf.Rela64
	for ; len(relocations) >= entry; relocations = relocations[entry:] {
		size := uint64(0)
		switch elf.R_X86_64(o.order.Uint32(relocations[8:])) { // the low half of r_info
		case elf.R_X86_64_64, elf.R_X86_64_PC64:
			size = 8
		case elf.R_X86_64_32, elf.R_X86_64_32S, elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
			size = 4
		}
		at := o.order.Uint64(relocations)
		if n := uint64(len(content)); size > n || at > n-size {
			continue
		}
		for _, b := range content[at : at+size] {
			if b != 0 {
				return true
			}
		}
	}
	return false
}
