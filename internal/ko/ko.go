// Package ko reads kernel modules: the .ko file that kbuild links and
// finit_module(2) takes, plain or compressed. It owns what such a file says of
// itself: .modinfo, symbols with their modversions CRCs, parameters, build-id
// and the appended signature.
//
// Open is the place to start. An Info is plain data, the same on every machine,
// whatever architecture the module is for. Damaged or hostile input is a
// *FormatError, never a panic, and takes memory in proportion to its size.
// The package reads facts and judges none of them: whether a kernel would take
// the module is for others to say.
package ko

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Info is what a module file says of itself.
type Info struct {
	// Name is the kernel's name of the module, with _: from name= in .modinfo
	// (since Linux 4.13, commit 3e2e857f9c3a) or from struct module, never from the name of the file.
	Name string `json:"name"`

	Fields     []Field  `json:"fields"`               // .modinfo in the order of the file, repeated keys kept
	Vermagic   string   `json:"vermagic"`             // as the kernel compares it, trailing blank included
	Version    string   `json:"version,omitempty"`    // MODULE_VERSION
	SrcVersion string   `json:"srcversion,omitempty"` // modpost's sum over the sources, hex
	License    string   `json:"license,omitempty"`    // the first MODULE_LICENSE, which is the one that the kernel looks at
	BuildID    string   `json:"build_id,omitempty"`   // .note.gnu.build-id in hex, as /sys/module/NAME/notes has it
	Depends    []string `json:"depends,omitempty"`    // module names as written, - or _

	// Arch is the machine by its uname -m name. Where one ELF machine has
	// several such names it is the usual one: armv7l, i686.
	Arch string `json:"arch"`

	// Modversions tells that the file has a table of CRCs at all: __versions, or
	// __version_ext_crcs and __version_ext_names (Linux 6.14, commit 54ac1ac8edeb).
	Modversions bool   `json:"modversions"`
	LayoutCRC   uint32 `json:"layout_crc,omitempty"` // CRC of module_layout, that is of struct module; 0 when there is none

	StructSize int64    `json:"struct_size"`          // bytes of struct module, as the headers that it was built with have it
	WriteExec  []string `json:"write_exec,omitempty"` // sections that are both writable and executable

	Relocated string `json:"relocated,omitempty"` // the first section that was linked already, which no kernel of x86-64 takes; "" when there is none
	Common    string `json:"common,omitempty"`    // the first variable without a place, by -fcommon, which no kernel takes; "" when there is none

	Imports   []Import   `json:"imports,omitempty"`   // undefined symbols, in the order of the symbol table
	Exports   []Export   `json:"exports,omitempty"`   // EXPORT_SYMBOL, in the order of the symbol table
	Params    []Param    `json:"params,omitempty"`    // in the order of the source, as modinfo(8) prints them; at the end those that .modinfo does not name
	Signature *Signature `json:"signature,omitempty"` // nil when unsigned

	Compression string `json:"compression,omitempty"` // of the file on disk: "", "gzip", "xz" or "zstd"
	Size        int64  `json:"size"`                  // bytes of the file on disk
}

// Field is one key=value of .modinfo.
type Field struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Import is a symbol that the module needs from the kernel or another module.
type Import struct {
	Name   string `json:"name"`
	CRC    uint32 `json:"crc,omitempty"` // modversions CRC the module was built against; meaningless unless HasCRC
	HasCRC bool   `json:"has_crc,omitempty"`
	Weak   bool   `json:"weak,omitempty"` // may stay unresolved
}

// Export is a symbol that the module offers to others.
type Export struct {
	Name      string `json:"name"`
	GPL       bool   `json:"gpl,omitempty"`       // EXPORT_SYMBOL_GPL
	Namespace string `json:"namespace,omitempty"` // EXPORT_SYMBOL_NS, since Linux 5.4
	CRC       uint32 `json:"crc,omitempty"`       // as in Module.symvers; meaningless unless HasCRC
	HasCRC    bool   `json:"has_crc,omitempty"`
}

// Param is a module parameter, joined from parm and parmtype of .modinfo.
type Param struct {
	Name        string `json:"name"`
	Type        string `json:"type,omitempty"` // "int", "array of charp"; "" when the module does not say
	Description string `json:"description,omitempty"`
	Max         int    `json:"max,omitempty"` // of an array its most values, of a string its most bytes with the NUL behind it; 0 when not known
}

// Open reads the module at path. What is not a regular file is refused. A file
// that is no readable module gives a *FormatError with its path.
func Open(path string) (*Info, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &FormatError{Path: path, Reason: "not a regular file", Err: ErrNotModule}
	}
	if st.Size() > maxSize {
		return nil, &FormatError{Path: path, Reason: fmt.Sprintf("%d bytes, the limit is %d", st.Size(), maxSize), Err: ErrTooLarge}
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	info, err := Read(data)
	var bad *FormatError
	if errors.As(err, &bad) {
		bad.Path = path
	}
	return info, err
}

// Read is Open for a file that is in memory already. Its errors are *FormatError.
func Read(data []byte) (*Info, error) {
	image, compression, err := Decompress(data)
	if err != nil {
		return nil, err
	}
	info := &Info{Compression: compression, Size: int64(len(data))}
	body, sig, err := splitSignature(image)
	if err != nil {
		return nil, err
	}
	info.Signature = sig
	obj, err := readObject(body)
	if err != nil {
		return nil, err
	}
	// sign-file appends DER right behind the ELF: its start without the
	// trailer is a signed module that lost its end.
	if rest := body[obj.end:]; sig == nil && len(rest) > 0 && rest[0] == derSequence {
		return nil, &FormatError{Section: signatureSection, Offset: obj.end, Reason: "begins but does not end", Err: ErrTruncated}
	}
	if n := obj.count(thisModule); n != 1 {
		return nil, &FormatError{Section: thisModule, Reason: fmt.Sprintf("%d such sections, a module has one", n), Err: ErrNotModule}
	}
	info.Arch = arch(obj)
	info.BuildID = buildID(obj)
	info.StructSize = int64(len(obj.section(thisModule)))
	info.WriteExec = obj.writeExec()
	info.Relocated = obj.relocated()
	info.readModinfo(obj.section(".modinfo"))
	if info.Name == "" {
		info.Name = NormalizeName(structName(obj))
	}
	if info.Name == "" {
		return nil, &FormatError{Section: thisModule, Reason: "module without a name", Err: ErrNotModule}
	}
	if err := info.readSymbols(obj); err != nil {
		return nil, err
	}
	return info, nil
}

// Release is the kernel release that the module was built for: the first word
// of its vermagic.
func (i *Info) Release() string {
	release, _, _ := strings.Cut(i.Vermagic, " ")
	return release
}

// Field returns the first value of key in .modinfo, "" when there is none. The
// first is the one that the kernel looks at.
func (i *Info) Field(key string) string {
	for _, f := range i.Fields {
		if f.Key == key {
			return f.Value
		}
	}
	return ""
}

// Values returns every value of key in .modinfo, in the order of the file.
func (i *Info) Values(key string) []string {
	var values []string
	for _, f := range i.Fields {
		if f.Key == key {
			values = append(values, f.Value)
		}
	}
	return values
}

// CRC returns the modversions CRC that the module expects of a symbol it
// imports, or of module_layout.
func (i *Info) CRC(symbol string) (uint32, bool) {
	if symbol == moduleLayout {
		return i.ModuleLayoutCRC()
	}
	for _, s := range i.Imports {
		if s.Name == symbol {
			return s.CRC, s.HasCRC
		}
	}
	return 0, false
}

// ModuleLayoutCRC returns the CRC of module_layout. It differs between kernels
// whose struct module differs, so it is the first that a kernel checks.
func (i *Info) ModuleLayoutCRC() (uint32, bool) { return i.LayoutCRC, i.LayoutCRC != 0 }

// NormalizeName gives a module name the kernel's form: - becomes _.
func NormalizeName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// NameOfFile guesses a module's name from its file: "foo-bar.ko.xz" gives
// "foo_bar". Only a guess: kbuild lets them differ, and Info.Name is the truth.
func NameOfFile(path string) string {
	base := filepath.Base(path)
	for _, suffix := range []string{".gz", ".xz", ".zst", ".ko"} {
		base = strings.TrimSuffix(base, suffix)
	}
	return NormalizeName(base)
}

// arch names the machine of an object as uname -m does on it.
func arch(o *object) string {
	big := o.order == binary.ByteOrder(binary.BigEndian)
	wide := o.class == elf.ELFCLASS64
	pick := func(cond bool, yes, no string) string {
		if cond {
			return yes
		}
		return no
	}
	switch o.machine {
	case elf.EM_X86_64:
		return "x86_64"
	case elf.EM_386:
		return "i686"
	case elf.EM_AARCH64:
		return pick(big, "aarch64_be", "aarch64")
	case elf.EM_ARM:
		return pick(big, "armv7b", "armv7l")
	case elf.EM_PPC64:
		return pick(big, "ppc64", "ppc64le")
	case elf.EM_PPC:
		return "ppc"
	case elf.EM_S390:
		return pick(wide, "s390x", "s390")
	case elf.EM_RISCV:
		return pick(wide, "riscv64", "riscv32")
	case elf.EM_MIPS:
		return pick(wide, "mips64", "mips")
	case elf.EM_LOONGARCH:
		return pick(wide, "loongarch64", "loongarch32")
	case elf.EM_SPARCV9:
		return "sparc64"
	case elf.EM_PARISC:
		return pick(wide, "parisc64", "parisc")
	}
	return strings.ToLower(strings.TrimPrefix(o.machine.String(), "EM_"))
}
