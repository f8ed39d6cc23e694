package loader

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// archive is a cpio archive of files with a content, made by another implementation.
func archive(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	for _, name := range names {
		if err := w.WriteRecord(cpio.StaticFile(name, "content of "+name, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInInitramfs(t *testing.T) {
	early := append(archive(t, "kernel/x86/microcode/GenuineIntel.bin"), make([]byte, 512)...)
	main := archive(t, "usr/bin/sh", "usr/lib/modules/6.1.0/kernel/snd-hda.ko.xz", "etc/modprobe.d/kmodctl.conf", "usr/lib/modules/6.1.0/kernel/x.ko", "usr/share/fat.kont")
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(main)
	z.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{"plain": main, "gzip behind another": append(bytes.Clone(early), zipped.Bytes()...), "zstd": enc.EncodeAll(main, nil)} {
		path := filepath.Join(t.TempDir(), "initrd.img")
		if err := os.WriteFile(path, image, 0o644); err != nil {
			t.Fatal(err)
		}
		for module, want := range map[string]bool{"snd-hda": true, "snd_hda": true, "x": true, "hda": false, "sh": false, "kmodctl": false} {
			if got, err := InInitramfs(path, module); got != want || err != nil {
				t.Errorf("%s: it holds %s: %v, %v", name, module, got, err)
			}
		}
		for _, cut := range []int{1, len(image) - 9} {
			if err := os.WriteFile(path, image[:cut], 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := InInitramfs(path, "nothing"); err == nil {
				t.Errorf("%s: cut at byte %d of %d it is taken for whole", name, cut, len(image))
			}
		}
	}
}

func FuzzInitramfs(f *testing.F) {
	f.Add(archive(f, "a/b.ko", "c"))
	f.Fuzz(func(t *testing.T, image []byte) {
		names := 0
		err := eachArchived(append(archive(t, "first.ko"), image...), func(name string) { names++ })
		if names == 0 {
			t.Errorf("what is behind an archive hides it: %v", err)
		}
	})
}
