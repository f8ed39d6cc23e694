package vm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// writeInitramfs writes the guest's root into a file that has no name: an
// uncompressed newc archive (Documentation/driver-api/early-userspace/buffer-format.rst),
// which a kernel under emulation unpacks at 5 ms a megabyte; no compression pays.
func writeInitramfs(t task, c Config) (*os.File, error) {
	f, err := unnamed()
	if err != nil {
		return nil, err
	}
	buf := bufio.NewWriterSize(f, 1<<20)
	a := archive{w: cpio.Newc.Writer(buf), made: map[string]uint64{"": unix.S_IFDIR}}
	if err = a.fill(t, c); err == nil {
		err = buf.Flush()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// archive writes a cpio archive in which every path has its folders before it.
type archive struct {
	w    cpio.RecordWriter
	made map[string]uint64 // path without its leading slash -> type of file
}

func (a *archive) fill(t task, c Config) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	// The kernel opens /dev/console for init before anything is mounted; a kernel
	// without an initramfs of its own would have none.
	if err := a.add(cpio.CharDev("dev/console", 0o600, 5, 1)); err != nil {
		return err
	}
	// The task comes last: where it is, everything before it was unpacked. A kernel
	// whose memory is full leaves out the rest and runs init all the same.
	for _, f := range slices.Concat([]File{{Guest: "/init", Host: c.Init}}, c.Files, []File{{Guest: taskFile, Data: data}}) {
		if err := a.file(f); err != nil {
			return fmt.Errorf("add %s: %w", f.Guest, err)
		}
	}
	return a.w.WriteRecord(cpio.TrailerRecord)
}

func (a *archive) file(f File) error {
	if !path.IsAbs(f.Guest) || path.Clean(f.Guest) != f.Guest {
		return fmt.Errorf("%q is not a clean absolute path", f.Guest)
	}
	name := f.Guest[1:]
	switch {
	case f.Host != "":
		return a.tree(name, f.Host)
	case f.Link != "":
		return a.add(cpio.Symlink(name, f.Link))
	}
	mode := f.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	return a.add(cpio.StaticRecord(f.Data, cpio.Info{Name: name, Mode: unix.S_IFREG | uint64(mode)}))
}

// tree adds a file, or a folder and everything below it. Links inside are kept,
// not followed.
func (a *archive) tree(name, host string) error {
	host, err := filepath.EvalSymlinks(host)
	if err != nil {
		return err
	}
	return filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return a.entry(strings.TrimPrefix(path.Join(name, rel), "."), p, info)
	})
}

func (a *archive) entry(name, host string, info fs.FileInfo) error {
	r := cpio.Record{Info: cpio.Info{Name: name, MTime: uint64(info.ModTime().Unix()), Mode: uint64(info.Mode().Perm())}}
	switch info.Mode().Type() {
	case fs.ModeDir:
		r.Mode |= unix.S_IFDIR
	case fs.ModeSymlink:
		to, err := os.Readlink(host)
		if err != nil {
			return err
		}
		r.Mode, r.FileSize, r.ReaderAt = unix.S_IFLNK|0o777, uint64(len(to)), bytes.NewReader([]byte(to))
	case 0:
		f, err := os.Open(host)
		if err != nil {
			return err
		}
		defer f.Close()
		r.Mode, r.FileSize, r.ReaderAt = r.Mode|unix.S_IFREG, uint64(info.Size()), f
	default:
		return fmt.Errorf("%s is neither file, folder nor link", host)
	}
	return a.add(r)
}

// add writes one record, after the folders that it needs.
func (a *archive) add(r cpio.Record) error {
	kind := r.Mode & unix.S_IFMT
	if old, ok := a.made[r.Name]; ok {
		if kind == unix.S_IFDIR && old == kind {
			return nil
		}
		return fmt.Errorf("/%s is given twice", r.Name)
	}
	if r.FileSize > math.MaxUint32 {
		return fmt.Errorf("/%s has %d bytes, a cpio archive takes 4 GiB", r.Name, r.FileSize)
	}
	if dir := parent(r.Name); a.made[dir] == unix.S_IFREG {
		return fmt.Errorf("/%s is a file, not a folder", dir)
	} else if a.made[dir] == 0 {
		if err := a.add(cpio.Directory(dir, 0o755)); err != nil {
			return err
		}
	}
	a.made[r.Name] = kind
	return a.w.WriteRecord(r)
}

func parent(name string) string {
	return strings.TrimPrefix(path.Dir("/"+name), "/")
}

// unnamed is a temporary file that is gone when the last process closes it.
func unnamed() (*os.File, error) {
	f, err := os.CreateTemp("", "kmodctl-vm-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
