package ko

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What Compress writes, the plain tools read, and it is the same each time.
func TestCompress(t *testing.T) {
	found, err := filepath.Glob("/lib/modules/6.1.*/kernel/lib/crc7.ko")
	if err != nil || len(found) == 0 {
		t.Fatalf("no crc7.ko: %v", err)
	}
	elf, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	tools := map[string][]string{"gzip": {"gzip", "-dc"}, "xz": {"xz", "-dc"}, "zstd": {"zstd", "-dc"}}
	for _, content := range [][]byte{elf, {}, bytes.Repeat([]byte("\x7fELF"), 1<<16)} {
		for name, tool := range tools {
			packed, err := Compress(content, name)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Compress(content, name); err != nil || !bytes.Equal(again, packed) {
				t.Errorf("%s: other bytes the second time, %v", name, err)
			}
			back, compression, err := Decompress(packed)
			if err != nil || compression != name || !bytes.Equal(back, content) {
				t.Errorf("%s: read back as %q with %d bytes of %d, %v", name, compression, len(back), len(content), err)
			}
			cmd := exec.Command(tool[0], tool[1:]...)
			cmd.Stdin = bytes.NewReader(packed)
			if out, err := cmd.Output(); err != nil || !bytes.Equal(out, content) {
				t.Errorf("%v: %d bytes of %d, %v", tool, len(out), len(content), err)
			}
			if name == "xz" {
				const crc32 = 1
				if packed[7] != crc32 {
					t.Errorf("xz: check %d", packed[7])
				}
			}
		}
	}
	if plain, err := Compress(elf, ""); err != nil || !bytes.Equal(plain, elf) {
		t.Errorf("without compression: %v", err)
	}
	if _, err := Compress(elf, "lzo"); err == nil {
		t.Error("an unknown compression was taken")
	}
}

func TestCompressionOf(t *testing.T) {
	for file, want := range map[string]string{"a.ko": "", "/lib/modules/x/a-b.ko.xz": "xz", "a.ko.gz": "gzip", "a.ko.zst": "zstd"} {
		got, ok := CompressionOf(file)
		if !ok || got != want {
			t.Errorf("%s: %q %v", file, got, ok)
		}
		if want != "" && file[len(file)-len(Suffix(want)):] != Suffix(want) {
			t.Errorf("suffix of %s: %q", want, Suffix(want))
		}
	}
	for _, file := range []string{"a", "a.ko.old", "a.ko.xz.tmp", "kmod.toml"} {
		if got, ok := CompressionOf(file); ok {
			t.Errorf("%s: %q", file, got)
		}
	}
}
