package vmlinux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestImage holds what is read out of the image of one kernel of each series against Module.symvers of its headers.
func TestImage(t *testing.T) {
	for _, series := range []string{"6.1.", "6.12."} {
		t.Run(series+"x", func(t *testing.T) {
			images, _ := filepath.Glob("/boot/vmlinuz-" + series + "*")
			if len(images) == 0 {
				t.Fatalf("no kernel %sx in /boot: apt install a linux-image of that series with its headers", series)
			}
			release := filepath.Base(images[0])[len("vmlinuz-"):]
			symvers, err := os.ReadFile("/lib/modules/" + release + "/build/Module.symvers")
			if err != nil {
				t.Fatal(err)
			}
			image, err := Open(images[0])
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			exports, err := image.Exports()
			if err != nil {
				t.Fatal(err)
			}
			if names := image.BuiltinNames(); !slices.Contains(names, "printk") || slices.Contains(names, "ext4") {
				t.Errorf("names of built-in modules: %q", names)
			}
			if certs := image.Certificates(); len(certs) == 0 {
				t.Error("no certificates")
			}
			var want, got bytes.Buffer
			for line := range bytes.Lines(symvers) {
				if bytes.Contains(line, []byte("\tvmlinux\t")) {
					want.Write(line)
				}
			}
			byName := map[string]Export{}
			for _, e := range exports {
				byName[e.Name] = e
			}
			for line := range bytes.Lines(want.Bytes()) { // in the same order
				e := byName[string(bytes.Split(line, []byte("\t"))[1])]
				kind := "EXPORT_SYMBOL"
				if e.GPL {
					kind += "_GPL"
				}
				fmt.Fprintf(&got, "0x%08x\t%s\tvmlinux\t%s\t%s\n", e.CRC, e.Name, kind, e.Namespace)
			}
			if n := bytes.Count(want.Bytes(), []byte("\n")); n < 5000 || n != len(exports) || len(byName) != n {
				t.Errorf("%d exports of %d names, Module.symvers has %d", len(exports), len(byName), n)
			}
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				t.Errorf("Module.symvers (-) and the image (+):\n%s", diff)
			}
		})
	}
}

// tables is a vmlinux that has nothing but tables of exports: sections of these contents by name, each 4 KiB behind the last.
func tables(names []string, contents ...[]byte) []byte {
	const header, entry = 64, 64
	body, headers, titles := make([]byte, header), make([]byte, entry), []byte{0}
	section := func(name string, kind elf.SectionType, content []byte, addr uint64) {
		h := make([]byte, entry)
		binary.LittleEndian.PutUint32(h, uint32(len(titles)))
		titles = append(append(titles, name...), 0)
		if name == ".shstrtab" {
			content = titles
		}
		binary.LittleEndian.PutUint32(h[4:], uint32(kind))
		binary.LittleEndian.PutUint64(h[16:], addr)
		binary.LittleEndian.PutUint64(h[24:], uint64(len(body)))
		binary.LittleEndian.PutUint64(h[32:], uint64(len(content)))
		body, headers = append(body, content...), append(headers, h...)
	}
	for i, name := range names {
		section(name, elf.SHT_PROGBITS, contents[i], uint64(i+1)<<12)
	}
	section(".shstrtab", elf.SHT_STRTAB, nil, 0)
	copy(body, elf.ELFMAG+"\x02\x01\x01")
	binary.LittleEndian.PutUint16(body[16:], uint16(elf.ET_EXEC))
	binary.LittleEndian.PutUint16(body[18:], uint16(elf.EM_X86_64))
	binary.LittleEndian.PutUint32(body[20:], 1)
	binary.LittleEndian.PutUint64(body[40:], uint64(len(body)))
	for i, v := range []int{header, 0, 0, entry, len(headers) / entry, len(headers)/entry - 1} {
		binary.LittleEndian.PutUint16(body[52+2*i:], uint16(v))
	}
	return append(body, headers...)
}

// words are 32-bit numbers.
func words(list ...int32) (b []byte) {
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, uint32(w))
	}
	return b
}

var (
	allTables = []string{"__ksymtab", "__ksymtab_gpl", "__kcrctab", "__kcrctab_gpl", "__ksymtab_strings"}
	strings1  = []byte("one\x00two\x00\x00NS\x00") // at 0x5000
	one       = words(0, 0x5000-0x1004, 0x5008-0x1008)
	two       = words(0, 0x5004-0x2004, 0x5009-0x2008)
)

func TestExportsOfTables(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		want  []Export
		err   error
	}{
		"both kinds": {tables(allTables, one, two, words(7), words(-1), strings1), []Export{
			{Name: "one", CRC: 7, HasCRC: true}, {Name: "two", GPL: true, Namespace: "NS", CRC: 0xffffffff, HasCRC: true}}, nil},
		"no modversions":    {tables([]string{"__ksymtab", "", "", "", "__ksymtab_strings"}, one, nil, nil, nil, strings1), []Export{{Name: "one"}}, nil},
		"no namespace":      {tables(allTables, words(0, 0x5000-0x1004, 0), nil, words(7), nil, strings1), []Export{{Name: "one", CRC: 7, HasCRC: true}}, nil},
		"no table":          {tables([]string{".text"}, one), nil, ErrNoExports},
		"one CRC too few":   {tables(allTables, one, append(two, two...), words(7), words(8), strings1), nil, ErrNoExports},
		"no CRC":            {tables(allTables, one, nil, nil, nil, strings1), nil, ErrNoExports},
		"absolute pointers": {tables(allTables, words(0x10, 0, 0x5000, 0, 0, 0), nil, words(1, 2), nil, strings1), nil, ErrNoExports},
		"name without end":  {tables(allTables, one, nil, words(7), nil, []byte("one")), nil, ErrNoExports},
	} {
		program, err := elf.NewFile(bytes.NewReader(c.image))
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := exportsOf(program)
		if !errors.Is(err, c.err) || !cmp.Equal(got, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzExports(f *testing.F) {
	f.Add(one, words(7), strings1)
	f.Add(words(0, -1<<31, 1<<31-1), words(7), strings1)
	f.Fuzz(func(t *testing.T, table, crcs, names []byte) {
		program, err := elf.NewFile(bytes.NewReader(tables(allTables, table, table, crcs, crcs, names)))
		if err != nil {
			t.Fatal(err)
		}
		list, err := exportsOf(program)
		if err == nil && len(list) != 2*len(table)/12 {
			t.Errorf("%d exports in tables of %d bytes", len(list), len(table))
		}
	})
}
