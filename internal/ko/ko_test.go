package ko

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

var crcs = map[string]uint32{"module_layout": 0xea759d7f, "_printk": 0x92997ed8, "export_a": 0x11223344, "export_b": 0x80000001}

// complete is a module with one of everything, for any machine.
func complete(machine elf.Machine, class elf.Class, order binary.AppendByteOrder) *fixture {
	f := newFixture(machine, class, order)
	f.add(".modinfo", []byte("license=GPL\x00license=MIT\x00\x00alias=a=b\x00depends=snd-pcm,snd\x00flag\x00"+
		"parmtype=last:int\x00parm=first:what it does: all\x00parmtype=first:array of uint\x00"+
		"srcversion=ABCDEF\x00version=1.0\x00name=foo-bar\x00vermagic=6.1.0-56-amd64 SMP mod_unload \x00"))
	f.thisModule("not_this")
	f.buildID("\x01\x02\xfe\xff")
	f.versions(crcs, "module_layout", "_printk")
	f.add("__ksymtab", make([]byte, 12))
	f.add("__ksymtab_gpl", make([]byte, 12))
	f.add("__ksymtab_strings", []byte("export_a\x00\x00export_b\x00NS_B\x00"))
	f.add("__kcrctab", f.u32(nil, crcs["export_a"]))
	f.symbol("init_module", elf.STB_GLOBAL, ".modinfo", 0)
	f.symbol("__param_str_bare", elf.STB_LOCAL, ".modinfo", 0)
	f.symbol("__param_str_first", elf.STB_LOCAL, ".modinfo", 0)
	f.symbol("_printk", elf.STB_GLOBAL, "", 0)
	f.symbol("maybe", elf.STB_WEAK, "", 0)
	f.symbol("_GLOBAL_OFFSET_TABLE_", elf.STB_GLOBAL, "", 0)
	f.symbol("__ksymtab_export_a", elf.STB_LOCAL, "__ksymtab", 0)
	f.symbol("__kstrtabns_export_a", elf.STB_LOCAL, "__ksymtab_strings", 9)
	f.symbol("__crc_export_a", elf.STB_LOCAL, "__kcrctab", 0)
	f.symbol("__ksymtab_export_b", elf.STB_LOCAL, "__ksymtab_gpl", 0)
	f.symbol("__kstrtabns_export_b", elf.STB_LOCAL, "__ksymtab_strings", 19)
	f.symbol("__crc_export_b", elf.STB_GLOBAL, "*ABS*", uint64(crcs["export_b"])) // as before Linux 5.19
	return f
}

func x86() *fixture { return complete(elf.EM_X86_64, elf.ELFCLASS64, binary.LittleEndian) }

func TestReadEveryMachine(t *testing.T) {
	for _, m := range []struct {
		arch    string
		machine elf.Machine
		class   elf.Class
		order   binary.AppendByteOrder
	}{
		{"x86_64", elf.EM_X86_64, elf.ELFCLASS64, binary.LittleEndian},
		{"aarch64", elf.EM_AARCH64, elf.ELFCLASS64, binary.LittleEndian},
		{"s390x", elf.EM_S390, elf.ELFCLASS64, binary.BigEndian},
		{"ppc64le", elf.EM_PPC64, elf.ELFCLASS64, binary.LittleEndian},
		{"riscv64", elf.EM_RISCV, elf.ELFCLASS64, binary.LittleEndian},
		{"armv7l", elf.EM_ARM, elf.ELFCLASS32, binary.LittleEndian},
		{"ppc", elf.EM_PPC, elf.ELFCLASS32, binary.BigEndian},
	} {
		t.Run(m.arch, func(t *testing.T) {
			data := complete(m.machine, m.class, m.order).bytes()
			got, err := Read(data)
			if err != nil {
				t.Fatal(err)
			}
			want := &Info{
				Name: "foo_bar", Vermagic: "6.1.0-56-amd64 SMP mod_unload ", Version: "1.0", SrcVersion: "ABCDEF",
				License: "GPL", BuildID: "0102feff", Depends: []string{"snd-pcm", "snd"}, Arch: m.arch,
				Fields: []Field{
					{"license", "GPL"}, {"license", "MIT"}, {"alias", "a=b"}, {"depends", "snd-pcm,snd"}, {"flag", ""},
					{"parmtype", "last:int"}, {"parm", "first:what it does: all"}, {"parmtype", "first:array of uint"},
					{"srcversion", "ABCDEF"}, {"version", "1.0"}, {"name", "foo-bar"}, {"vermagic", "6.1.0-56-amd64 SMP mod_unload "},
				},
				Modversions: true, LayoutCRC: crcs["module_layout"],
				StructSize: int64(3*layouts[m.class].word + len("not_this") + 200),
				Imports:    []Import{{Name: "_printk", CRC: crcs["_printk"], HasCRC: true}, {Name: "maybe", Weak: true}},
				Exports: []Export{
					{Name: "export_a", CRC: crcs["export_a"], HasCRC: true},
					{Name: "export_b", GPL: true, Namespace: "NS_B", CRC: crcs["export_b"], HasCRC: true},
				},
				Params: []Param{{Name: "first", Type: "array of uint", Description: "what it does: all"}, {Name: "last", Type: "int"}, {Name: "bare"}},
				Size:   int64(len(data)),
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Read (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInfoAnswers(t *testing.T) {
	info, err := Read(x86().bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Release(); got != "6.1.0-56-amd64" {
		t.Errorf("Release() = %q", got)
	}
	if got := info.Values("license"); !cmp.Equal(got, []string{"GPL", "MIT"}) || info.Field("license") != "GPL" || info.Field("none") != "" {
		t.Errorf("licenses %q, first %q", got, info.Field("license"))
	}
	for symbol, want := range map[string]bool{"_printk": true, "module_layout": true, "maybe": false, "export_a": false} {
		if crc, ok := info.CRC(symbol); ok != want || ok && crc != crcs[symbol] {
			t.Errorf("CRC(%q) = %#x, %v", symbol, crc, ok)
		}
	}
	text, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	var again Info
	if err := json.Unmarshal(text, &again); err != nil || !cmp.Equal(*info, again) {
		t.Errorf("JSON loses something (%v):\n%s", err, cmp.Diff(*info, again))
	}
}

// Without name= in .modinfo (before Linux 4.13) struct module tells, 32 or 64 bit.
func TestNameFromStructModule(t *testing.T) {
	for _, class := range []elf.Class{elf.ELFCLASS64, elf.ELFCLASS32} {
		f := newFixture(elf.EM_MIPS, class, binary.BigEndian)
		f.thisModule("old_name")
		info, err := Read(f.bytes())
		if err != nil || info.Name != "old_name" || info.Modversions {
			t.Errorf("%v: %+v, %v", class, info, err)
		}
	}
}

func TestExtendedModversions(t *testing.T) {
	long := "_R" + strings.Repeat("NvCs_rust", 20) // does not fit into __versions
	sums := map[string]uint32{"module_layout": 1, long: 0xfffffffe}
	f := newFixture(elf.EM_X86_64, elf.ELFCLASS64, binary.LittleEndian)
	f.thisModule("rusty")
	f.versions(map[string]uint32{"module_layout": 7}, "module_layout") // not the table that counts
	f.extendedVersions(sums, "module_layout", long)
	f.symbol(long, elf.STB_GLOBAL, "", 0)
	info, err := Read(f.bytes())
	if err != nil {
		t.Fatal(err)
	}
	if crc, ok := info.CRC(long); !ok || crc != sums[long] {
		t.Errorf("CRC of the long name %#x, %v", crc, ok)
	}
	if crc, ok := info.ModuleLayoutCRC(); !ok || crc != 1 {
		t.Errorf("CRC of module_layout %#x, %v", crc, ok)
	}
}

func TestRefuse(t *testing.T) {
	broken := func(change func(f *fixture)) []byte {
		f := x86()
		change(f)
		return f.bytes()
	}
	patched := func(offset int, b byte) []byte {
		data := x86().bytes()
		data[offset] = b
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		err  error
		text string // in the message
	}{
		"empty":               {nil, ErrTruncated, "empty file"},
		"text":                {[]byte("#!/bin/sh\n"), ErrNotELF, "not an ELF file"},
		"magic only":          {[]byte("\x7fELF"), ErrTruncated, "ELF header"},
		"class":               {patched(elf.EI_CLASS, 9), ErrMalformed, "ELF class 9"},
		"byte order":          {patched(elf.EI_DATA, 9), ErrMalformed, "ELF byte order 9"},
		"no section headers":  {patched(0x3c, 0), ErrMalformed, "0 section headers"},
		"names out of range":  {patched(0x3e, 200), ErrMalformed, "number 200"},
		"program":             {broken(func(f *fixture) { f.kind = elf.ET_EXEC }), ErrNotModule, "ET_EXEC"},
		"plain object":        {newFixture(elf.EM_X86_64, elf.ELFCLASS64, binary.LittleEndian).bytes(), ErrNotModule, thisModule},
		"two modules":         {broken(func(f *fixture) { f.thisModule("other") }), ErrNotModule, "2 such sections"},
		"stripped":            {broken(func(f *fixture) { f.noSymtab = true }), ErrStripped, ".symtab"},
		"half of ext tables":  {broken(func(f *fixture) { f.add("__version_ext_crcs", []byte{1, 2, 3, 4}) }), ErrMalformed, "go together"},
		"too few ext names":   {broken(func(f *fixture) { f.extendedVersions(nil, "a"); f.sections[len(f.sections)-2].data = make([]byte, 8) }), ErrMalformed, "ends after 1 names"},
		"endless symbol name": {broken(func(f *fixture) { f.symbol(strings.Repeat("x", maxName), elf.STB_GLOBAL, "", 0) }), ErrMalformed, "bad name"},
		"no name": {func() []byte {
			f := newFixture(elf.EM_X86_64, elf.ELFCLASS64, binary.LittleEndian)
			f.thisModule("")
			return f.bytes()
		}(), ErrNotModule, "without a name"},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := Read(c.data)
			var bad *FormatError
			if !errors.Is(err, c.err) || !errors.As(err, &bad) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Read: %v, %v; want %v and %q", info, err, c.err, c.text)
			}
		})
	}
}

// A real module that was cut anywhere is truncated, whether the cut is in the
// ELF, in the signature behind it or in compressed bytes.
func TestTruncated(t *testing.T) {
	module := plainModule(t, "dummy")
	if info, err := Read(module); err != nil || info.Signature == nil {
		t.Fatalf("dummy.ko: %+v, %v", info, err)
	}
	unsigned, _, err := splitSignature(module)
	if err != nil {
		t.Fatal(err)
	}
	for compression, data := range compressed(t, module) {
		for i := range 50 {
			cut := len(data) * i / 50
			if info, err := Read(data[:cut]); !errors.Is(err, ErrTruncated) {
				t.Errorf("%q module cut at %d of %d: %+v, %v", compression, cut, len(data), info, err)
			}
		}
	}
	for cut := len(unsigned) + 1; cut < len(module); cut += 10 {
		if _, err := Read(module[:cut]); !errors.Is(err, ErrTruncated) {
			t.Errorf("signature cut at %d of %d: %v", cut, len(module), err)
		}
	}
}

// patchFlags sets bits of sh_flags of a 64-bit little-endian module's section.
func patchFlags(t *testing.T, module []byte, section string, bits elf.SectionFlag) {
	t.Helper()
	o, err := readObject(module)
	if err != nil {
		t.Fatal(err)
	}
	flags := o.find(section).header[8:]
	binary.LittleEndian.PutUint64(flags, binary.LittleEndian.Uint64(flags)|uint64(bits))
}

func TestWriteExec(t *testing.T) {
	module := plainModule(t, "dummy")
	if info, err := Read(module); err != nil || info.WriteExec != nil || info.StructSize < 500 {
		t.Fatalf("%+v, %v", info, err)
	}
	patchFlags(t, module, ".text", elf.SHF_WRITE)
	if info, err := Read(module); err != nil || !slices.Equal(info.WriteExec, []string{".text"}) {
		t.Errorf("writable .text: %+v, %v", info, err)
	}
}

// What an array or a string can hold is in the module's data alone.
func TestLimits(t *testing.T) {
	f := x86()
	f.add(".rodata", f.u32(f.u32(nil, 8), 3))
	f.symbol("__param_arr_first", elf.STB_LOCAL, ".rodata", 4)
	f.symbol("__param_string_last", elf.STB_LOCAL, ".rodata", 0)
	f.symbol("__param_string_bare", elf.STB_LOCAL, ".rodata", 6) // reaches behind the end
	info, err := Read(f.bytes())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{3, 8, 0} {
		if p := info.Params[i]; p.Max != want {
			t.Errorf("%+v, want at most %d", p, want)
		}
	}
}

func TestOtherArchitecture(t *testing.T) {
	module := plainModule(t, "dummy")
	binary.LittleEndian.PutUint16(module[0x12:], uint16(elf.EM_AARCH64))
	info, err := Read(module)
	if err != nil || info.Arch != "aarch64" || info.Name != "dummy" {
		t.Errorf("Read: %+v, %v", info, err)
	}
}

func TestDecompress(t *testing.T) {
	plain := x86().bytes()
	for compression, data := range compressed(t, plain) {
		got, name, err := Decompress(data)
		if err != nil || name != compression || !bytes.Equal(got, plain) {
			t.Errorf("Decompress: %q, %v; want %q", name, err, compression)
		}
		info, err := Read(data)
		if err != nil || info.Compression != compression || info.Size != int64(len(data)) {
			t.Errorf("Read of %q: %+v, %v", compression, info, err)
		}
		if compression == "" {
			continue
		}
		if _, _, err := decompress(data, int64(len(plain)-1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%q over the limit: %v", compression, err)
		}
		if _, _, err := decompress(data, int64(len(plain))); err != nil {
			t.Errorf("%q at the limit: %v", compression, err)
		}
		data[len(data)/2] ^= 0x40
		if _, _, err := Decompress(data); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%q with a flipped bit: %v", compression, err)
		}
	}
}

// An xz header of 12 bytes can ask for a dictionary of 4 GiB; in any block.
func TestHugeDictionary(t *testing.T) {
	var one bytes.Buffer
	w, err := xz.WriterConfig{CheckSum: xz.CRC32, BlockSize: 4096}.NewWriter(&one)
	if err != nil {
		t.Fatal(err)
	}
	plain := bytes.Repeat([]byte("module "), 2000)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := one.Bytes()
	if got, _, err := Decompress(data); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("several blocks: %d bytes, %v", len(got), err)
	}
	header := data[12 : 12+(int(data[12])+1)*4]
	last := bytes.LastIndex(data, header)
	if last == 12 {
		t.Fatal("the writer made one block")
	}
	dict := bytes.Index(header, []byte{0x21, 1}) + 2
	data[last+dict] = 40
	sum := last + len(header) - 4
	binary.LittleEndian.PutUint32(data[sum:], crc32.ChecksumIEEE(data[last:sum]))
	if _, _, err := Decompress(data); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "dictionary of 4294967295 bytes") {
		t.Errorf("dictionary of 4 GiB: %v", err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "some.ko")
	if err := os.WriteFile(path, x86().bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.ko")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link} {
		if info, err := Open(p); err != nil || info.Name != "foo_bar" {
			t.Errorf("Open(%s): %+v, %v", p, info, err)
		}
	}
	fifo := filepath.Join(dir, "fifo.ko")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, fifo, "/dev/null"} {
		if _, err := Open(p); !errors.Is(err, ErrNotModule) || !strings.Contains(err.Error(), p) {
			t.Errorf("Open(%s): %v", p, err)
		}
	}
	if _, err := Open(filepath.Join(dir, "none.ko")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing: %v", err)
	}
	if err := os.WriteFile(path, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	want := "read " + path + ": not an ELF file"
	if _, err := Open(path); err == nil || err.Error() != want {
		t.Errorf("Open: %v, want %s", err, want)
	}
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Open of a huge file: %v", err)
	}
}

func TestNames(t *testing.T) {
	for path, want := range map[string]string{
		"foo.ko":                     "foo",
		"/lib/modules/x/foo-bar.ko":  "foo_bar",
		"a/nls_iso8859-1.ko.xz":      "nls_iso8859_1",
		"a.kobold.ko.gz":             "a.kobold",
		"chacha-x86_64.ko.zst":       "chacha_x86_64",
		"/lib/modules/a.ko.d/b-c.ko": "b_c",
	} {
		if got := NameOfFile(path); got != want {
			t.Errorf("NameOfFile(%q) = %q, want %q", path, got, want)
		}
	}
}

// compressed returns data in every form that Decompress knows.
func compressed(t testing.TB, data []byte) map[string][]byte {
	t.Helper()
	var gz, x, zst bytes.Buffer
	write := func(w interface {
		Write([]byte) (int, error)
		Close() error
	}, err error) {
		if err == nil {
			_, err = w.Write(data)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(gzip.NewWriter(&gz), nil)
	xw, err := xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}.NewWriter(&x)
	write(xw, err)
	zw, err := zstd.NewWriter(&zst)
	write(zw, err)
	return map[string][]byte{"": data, "gzip": gz.Bytes(), "xz": x.Bytes(), "zstd": zst.Bytes()}
}

// One small module, as `kmodctl build` and `load` read it.
func BenchmarkRead(b *testing.B) {
	data := plainModule(b, "dummy")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Read(data); err != nil {
			b.Fatal(err)
		}
	}
}
