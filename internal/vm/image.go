package vm

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kmodctl/internal/vmlinux"
)

// openKernel opens the form of an image that boots fastest. A vmlinuz unpacks
// itself, which takes an emulated processor 0.2 to 2.2 s; so its vmlinux is
// unpacked here, once, and started by its PVH note (CONFIG_PVH).
func openKernel(image string) (*os.File, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	kernel, err := bootable(f)
	if kernel != f {
		f.Close()
	}
	return kernel, err
}

// bootable returns f itself if there is nothing better to boot.
func bootable(f *os.File) (*os.File, error) {
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if string(magic) == elf.ELFMAG {
		if !hasPVH(f) {
			return nil, errors.New("vmlinux is not for x86_64 or has no PVH note (CONFIG_PVH): give its vmlinuz")
		}
		return f, nil
	}
	image, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	cached := cachePath(image)
	if kept, err := os.Open(cached); err == nil {
		now := time.Now()
		os.Chtimes(cached, now, now) // for prune
		return kept, nil
	}
	unpacked, err := vmlinux.Payload(image)
	if errors.Is(err, vmlinux.ErrCompression) || err == nil && !hasPVH(bytes.NewReader(unpacked)) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	return keep(cached, unpacked)
}

// cachePath is where the unpacked form of an image is kept, "" if nowhere. It is
// named by the image's digest, so that it need never be checked for age.
func cachePath(image []byte) string {
	dir := "/var/cache"
	if os.Getenv("XDG_CACHE_HOME") != "" || os.Geteuid() != 0 {
		var err error
		if dir, err = os.UserCacheDir(); err != nil {
			return ""
		}
	}
	return filepath.Join(dir, "kmodctl", fmt.Sprintf("vmlinux-%x", sha256.Sum256(image)))
}

// keep puts vmlinux in the cache, or in a file without a name where there is no
// cache that can be written.
func keep(cached string, data []byte) (*os.File, error) {
	if err := store(cached, data); err == nil {
		return os.Open(cached)
	}
	f, err := unnamed()
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// store writes a file that is whole or not there, even after a power cut.
func store(name string, data []byte) error {
	if name == "" {
		return errors.New("no cache folder")
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	prune(dir)
	f, err := os.CreateTemp(dir, ".vmlinux-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// prune removes kernels (60 MB each) that were not booted for 30 days, and what
// a killed store has left.
func prune(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && strings.Contains(e.Name(), "vmlinux-") && time.Since(info.ModTime()) > 30*24*time.Hour {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// hasPVH reports whether an ELF file is a kernel that QEMU can start at its
// 32-bit entry: note 18 of "Xen" (XEN_ELFNOTE_PHYS32_ENTRY,
// include/xen/interface/elfnote.h).
func hasPVH(r io.ReaderAt) bool {
	const phys32Entry = 18
	f, err := elf.NewFile(r)
	if err != nil || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		for note := p.Open(); ; {
			var h struct{ Name, Desc, Type uint32 }
			if binary.Read(note, binary.LittleEndian, &h) != nil {
				break
			}
			name := make([]byte, min(h.Name, 8))
			if _, err := io.ReadFull(note, name); err != nil {
				break
			}
			if h.Type == phys32Entry && string(name) == "Xen\x00" {
				return true
			}
			skip := align4(int64(h.Name)) - int64(len(name)) + align4(int64(h.Desc))
			if _, err := note.Seek(skip, io.SeekCurrent); err != nil {
				break
			}
		}
	}
	return false
}

func align4(n int64) int64 { return (n + 3) &^ 3 }
