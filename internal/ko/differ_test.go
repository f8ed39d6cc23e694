package ko

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiffer(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *fixture)
		want   []Difference
	}{
		"nothing": {func(f *fixture) {}, nil},
		"content": {func(f *fixture) { f.sections[2].data[17] ^= 1 }, []Difference{{".note.gnu.build-id", "from byte 17 on"}}},
		"size": {func(f *fixture) { f.sections[4].data = f.sections[4].data[:8] },
			[]Difference{{"__ksymtab", "from byte 8 on, 12 and 8 bytes long"}}},
		"type": {func(f *fixture) { f.sections[5].kind = elf.SHT_NOTE }, []Difference{{"__ksymtab_gpl", "type, flags, size or alignment"}}},
		"symbols": {func(f *fixture) { f.symbols[0].name = "INIT_module"; f.symbol("more", elf.STB_GLOBAL, "", 0) }, []Difference{
			{".symtab", "from byte 312 on, 312 and 336 bytes long; only in the first: init_module; only in the second: INIT_module more"},
			{".strtab", "from byte 1 on, 194 and 199 bytes long"},
		}},
		"symbol elsewhere": {func(f *fixture) { f.symbols[0].value = 1 }, []Difference{{".symtab", "from byte 32 on"}}},
		"sections": {func(f *fixture) {
			f.add("more", []byte("x"))
			f.sections[7].name, f.sections[7].data = ".modinfo", []byte("a second one")
		}, []Difference{
			{"__kcrctab", "only in the first"},
			{".symtab", "from byte 30 on"}, // symbols are of other sections
			{".shstrtab", "from byte 109 on, 145 and 149 bytes long"},
			{".modinfo", "only in the second"},
			{"more", "only in the second"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := x86()
			c.change(f)
			got, err := Differ(x86().bytes(), f.bytes())
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
	t.Run("signature", func(t *testing.T) {
		got, err := Differ(x86().bytes(), append(x86().bytes(), "signed"...))
		if want := []Difference{{"signature", "from byte 0 on, 0 and 6 bytes long"}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("nothing but the ELF header", func(t *testing.T) {
		b := x86().bytes()
		b[0x30] ^= 1 // e_flags
		got, err := Differ(x86().bytes(), b)
		if want := []Difference{{"ELF headers", "the layout of the file"}}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("other machine", func(t *testing.T) {
		got, err := Differ(x86().bytes(), complete(elf.EM_ARM, elf.ELFCLASS32, binary.LittleEndian).bytes())
		if err != nil || len(got) == 0 {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("no module", func(t *testing.T) {
		for _, pair := range [][2][]byte{{x86().bytes(), []byte("text")}, {nil, x86().bytes()}} {
			var bad *FormatError
			if got, err := Differ(pair[0], pair[1]); !errors.As(err, &bad) {
				t.Errorf("%v, %v", got, err)
			}
		}
	})
}

// One byte of a real module is changed, in one section after the other: that section is
// named, and no other.
func TestDifferNamesTheSection(t *testing.T) {
	good := plainModule(t, "dummy")
	f, err := elf.NewFile(bytes.NewReader(good)) // a reader of its own, which knows where they are
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NULL || s.Type == elf.SHT_NOBITS || s.Size == 0 || s.Name == ".shstrtab" {
			continue
		}
		bad := bytes.Clone(good)
		bad[s.Offset+s.Size/2] ^= 0x80
		got, err := Differ(good, bad)
		if err != nil || len(got) != 1 || got[0].Section != s.Name || !strings.HasPrefix(got[0].How, "from byte ") {
			t.Errorf("%s: %v, %v", s.Name, got, err)
		}
		changed++
	}
	if changed < 10 {
		t.Errorf("only %d sections had a byte to change", changed)
	}
}
