// Package headers unpacks packages of kernel headers, .deb and .rpm, without installing
// them: below a folder that then looks like the root of a machine which has them, so
// that kernel.Find finds there what they bring.
//
// A package is data from a stranger. Of it only the folders are taken that kernel headers
// live in, only files, folders and links, without an owner and rights of their own. None of
// its scripts is run. Whatever it holds, nothing is written outside of the folder.
package headers

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits, in bytes but for the count of entries. The largest known packages, kernel-devel
// of Fedora, have some 60 MiB, 350 MiB unpacked.
const (
	maxPackage  = 512 << 20 // it is held in memory
	maxUnpacked = 4 << 30   // of all packages of a set
	maxEntries  = 500_000
)

// Package is a package file as Open found it.
type Package struct {
	File   string
	SHA256 string // in hex
}

// Packages are the packages of one set, which are unpacked together: Debian has the
// headers of a kernel in three.
type Packages []Package

// Open reads package files, and refuses what is neither a .deb nor an .rpm. Files of the
// same content count once.
func Open(files []string) (Packages, error) {
	var set Packages
	for _, file := range files {
		data, err := read(file)
		if err == nil && kindOf(data) == nil {
			err = errNoPackage
		}
		if err != nil {
			return nil, fmt.Errorf("read package %s: %w", file, err)
		}
		set = append(set, Package{file, sum(data)})
	}
	slices.SortStableFunc(set, func(a, b Package) int { return cmp.Compare(a.SHA256, b.SHA256) })
	return slices.CompactFunc(set, func(a, b Package) bool { return a.SHA256 == b.SHA256 }), nil
}

// Digest stands for the content of all packages, in whatever order they were given: a
// SHA-256 in hex.
func (set Packages) Digest() string {
	var text strings.Builder
	for _, p := range set {
		fmt.Fprintln(&text, p.SHA256)
	}
	return sum([]byte(text.String()))
}

// Unpack lays out what the packages hold of kernel headers below dir, an empty folder, as on
// a machine with a merged /usr (/lib is a link to usr/lib). Everybody may read it. A package
// that holds nothing of the kind, or the same file as another one, is an error; then dir is
// not to be used. When Unpack returns, all is on the disk.
func (set Packages) Unpack(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack headers: %w", err)
	}
	defer root.Close()
	u := &unpacker{ctx: ctx, root: root, left: maxUnpacked, links: map[string]string{"lib": "usr/lib"}}
	for _, p := range set {
		if err := u.unpack(p); err != nil {
			return fmt.Errorf("unpack %s: %w", p.File, err)
		}
	}
	if err := u.makeLinks(); err != nil {
		return fmt.Errorf("unpack headers: %w", err)
	}
	return sync(root)
}

// sync has the whole file system written: one call in the place of 20,000 (syncfs(2)).
func sync(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
}

// read returns the content of a package file. It does not wait for a FIFO's writer.
func read(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errNoPackage
	case info.Size() > maxPackage:
		return nil, fmt.Errorf("is too big for a package of headers: %d bytes, of %d at most", info.Size(), maxPackage)
	}
	var data bytes.Buffer
	data.Grow(int(info.Size()) + bytes.MinRead)
	_, err = data.ReadFrom(io.LimitReader(f, info.Size()))
	return data.Bytes(), err
}

func sum(data []byte) string {
	digest := sha256.Sum256(data)
	return hex.EncodeToString(digest[:])
}
