package vm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Without its PVH note a kernel would still boot, slower by its own unpacking.
func TestInstalledKernelsBootUnpacked(t *testing.T) {
	for _, series := range []string{"6.1", "6.12"} {
		_, image := release(t, series)
		f, err := openKernel(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Name() == image || !hasPVH(f) {
			t.Errorf("%s is booted as %s", image, f.Name())
		}
	}
}

func TestUnpackedKernelIsKept(t *testing.T) {
	_, image := release(t, "6.12")
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	unused := filepath.Join(cache, "kmodctl", "vmlinux-unused")
	other := filepath.Join(cache, "kmodctl", "other")
	if err := os.Mkdir(filepath.Dir(unused), 0o755); err != nil {
		t.Fatal(err)
	}
	longAgo := time.Now().AddDate(0, 0, -31)
	for _, name := range []string{unused, other} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, longAgo, longAgo); err != nil {
			t.Fatal(err)
		}
	}
	first, second := inode(t, image), inode(t, image)
	if !os.SameFile(first, second) {
		t.Error("the kernel was unpacked again")
	}
	kept, err := filepath.Glob(filepath.Join(cache, "kmodctl", "*"))
	if err != nil || len(kept) != 2 || kept[0] != other {
		t.Errorf("the cache holds %v; want the new kernel and what is not ours", kept)
	}

	t.Setenv("XDG_CACHE_HOME", filepath.Join(other, "no folder"))
	if unkept := inode(t, image); unkept.Size() != first.Size() {
		t.Errorf("without a cache it has %d bytes, with one %d", unkept.Size(), first.Size())
	}
}

func inode(t *testing.T, image string) os.FileInfo {
	t.Helper()
	f, err := openKernel(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// withNotes is an x86_64 ELF file with one segment of notes.
func withNotes(machine elf.Machine, notes string) []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	})
	binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(len(notes))})
	b.WriteString(notes)
	return b.Bytes()
}

const (
	gnuNote = "\x04\x00\x00\x00\x05\x00\x00\x00\x12\x00\x00\x00GNU\x0012345\x00\x00\x00"
	pvhNote = "\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x10\x02\x00\x01"
	xenNote = "\x04\x00\x00\x00\x04\x00\x00\x00\x06\x00\x00\x00Xen\x00\x00\x00\x00\x00"
)

func TestPVHNote(t *testing.T) {
	for name, test := range map[string]struct {
		vmlinux []byte
		want    bool
	}{
		"alone":         {withNotes(elf.EM_X86_64, pvhNote), true},
		"after others":  {withNotes(elf.EM_X86_64, gnuNote+xenNote+pvhNote), true},
		"others":        {withNotes(elf.EM_X86_64, gnuNote+xenNote), false},
		"cut short":     {withNotes(elf.EM_X86_64, gnuNote+pvhNote[:14]), false},
		"other machine": {withNotes(elf.EM_386, pvhNote), false},
		"no ELF":        {[]byte(pvhNote), false},
	} {
		if got := hasPVH(bytes.NewReader(test.vmlinux)); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func FuzzPVHNote(f *testing.F) {
	f.Add(gnuNote + xenNote + pvhNote)
	f.Fuzz(func(t *testing.T, notes string) {
		if hasPVH(bytes.NewReader(withNotes(elf.EM_X86_64, notes))) && !strings.Contains(notes, "Xen\x00") {
			t.Errorf("found in %q", notes)
		}
	})
}
