package vmlinux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

var builtinTables = []string{".rodata", "__param", "__modver"}

// param and modver are entries whose names are at an offset of the first section of tables.
func param(name uint64, perm uint16) []byte {
	entry := make([]byte, 40)
	binary.LittleEndian.PutUint64(entry, 0x1000+name)
	binary.LittleEndian.PutUint16(entry[24:], perm)
	return entry
}

func modver(name uint64) []byte {
	entry := make([]byte, 72)
	binary.LittleEndian.PutUint64(entry[56:], 0x1000+name)
	return entry
}

func builtinNames(t testing.TB, texts, params, versions []byte) []string {
	t.Helper()
	program, err := elf.NewFile(bytes.NewReader(tables(builtinTables, texts, params, versions)))
	if err != nil {
		t.Fatal(err)
	}
	return (&Image{program: program}).BuiltinNames()
}

func TestBuiltinNames(t *testing.T) {
	texts := []byte("printk.time\x00nopanic\x00hidden.secret\x00tls\x00")
	params := slices.Concat(param(0, 0o644), param(20, 0), param(9000, 0o644))
	if got, want := builtinNames(t, texts, params, modver(34)), []string{"printk", "tls"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := builtinNames(t, texts, param(12, 0o444), nil), []string{"kernel"}; !slices.Equal(got, want) {
		t.Errorf("without a dot: %q, want %q", got, want)
	}
}

func FuzzBuiltinNames(f *testing.F) {
	f.Add([]byte("printk.time\x00tls\x00"), param(0, 0o644), modver(12))
	f.Add([]byte("a"), param(1, 1), []byte("no entry"))
	f.Fuzz(func(t *testing.T, texts, params, versions []byte) {
		for _, name := range builtinNames(t, texts, params, versions) {
			if name != "kernel" && !strings.Contains(string(slices.Concat(texts, []byte{0}, params, []byte{0}, versions)), name) {
				t.Errorf("%q is no text of the image", name)
			}
		}
	})
}
