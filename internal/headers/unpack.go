package headers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// unpacker fills a folder from packages.
type unpacker struct {
	ctx     context.Context
	root    *os.Root
	left    int64             // bytes that may still be written
	entries int               // of all packages
	links   map[string]string // symbolic links: they are made last, so that no name can lead through one
	made    map[string]bool   // folders
}

func (u *unpacker) unpack(p Package) error {
	data, err := read(p.File)
	if err != nil {
		return err
	}
	if sum(data) != p.SHA256 {
		return errors.New("has changed since it was looked at")
	}
	k := kindOf(data)
	if data, err = k.payload(data); err != nil {
		return err
	}
	content, err := decompress(data)
	if err != nil {
		return err
	}
	defer content.Close()
	src := &bounded{u.ctx, content, maxUnpacked}
	taken, err := u.takeAll(k.open(src))
	if err != nil {
		return err
	}
	// To the end, where the checksums are.
	if _, err := io.Copy(io.Discard, src); err != nil {
		return err
	}
	if taken == 0 {
		return errors.New("holds no kernel headers: nothing of it goes to /usr/src, /usr/lib/linux-kbuild-* or /lib/modules/*/build")
	}
	return nil
}

// takeAll takes what an archive has of headers, and says how many entries that was.
func (u *unpacker) takeAll(a archive) (taken int, err error) {
	for {
		h, err := a.Next()
		if err == io.EOF {
			return taken, nil
		} else if err != nil {
			return taken, err
		}
		if u.entries++; u.entries > maxEntries {
			return taken, fmt.Errorf("has too many files: %d at most", maxEntries)
		}
		name, err := place(h.Name)
		if err == nil && isHeaders(name) {
			err = u.take(name, h, a)
			taken++
		}
		if err != nil {
			return taken, fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// place is where an entry's name is below the root. What is in /lib is in /usr/lib.
func place(name string) (string, error) {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "."), "/")
	if name = strings.TrimSuffix(name, "/"); name == "" {
		return ".", nil
	}
	if !filepath.IsLocal(name) || path.Clean(name) != name {
		return "", errors.New("is not a plain path")
	}
	if strings.HasPrefix(name, "lib/") {
		name = "usr/" + name
	}
	return name, nil
}

// isHeaders reports whether a name is in one of the folders that headers live in.
func isHeaders(name string) bool {
	if in, ok := strings.CutPrefix(name, "usr/lib/modules/"); ok {
		_, in, _ = strings.Cut(in, "/")
		in, _, _ = strings.Cut(in, "/")
		return in == "build" || in == "source" // the rest is the kernel's package
	}
	return strings.HasPrefix(name, "usr/src/") || strings.HasPrefix(name, "usr/lib/linux-kbuild-")
}

func (u *unpacker) take(name string, h *tar.Header, body io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return u.folder(name)
	}
	if err := u.folder(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(name, h, body)
	case tar.TypeLink:
		to, err := place(h.Linkname)
		if err != nil {
			return fmt.Errorf("is a link to %q, which %w", h.Linkname, err)
		}
		return u.root.Link(to, name)
	case tar.TypeSymlink:
		return u.link(name, h.Linkname)
	}
	return errors.New("is neither a file nor a folder nor a link")
}

func (u *unpacker) file(name string, h *tar.Header, body io.Reader) error {
	if u.left -= h.Size; u.left < 0 {
		return errTooBig
	}
	mode := fs.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return twice(err)
	}
	n, err := io.Copy(f, body)
	if err == nil && n != h.Size {
		err = errCutShort
	}
	return errors.Join(err, f.Chmod(mode), f.Close()) // whatever the umask is
}

// link notes a symbolic link. An absolute one leads where it would on a machine of this root
// (kernel.Root).
func (u *unpacker) link(name, to string) error {
	if _, again := u.links[name]; again {
		return twice(fs.ErrExist)
	}
	if to == "" || !path.IsAbs(to) && !filepath.IsLocal(path.Join(path.Dir(name), to)) {
		return fmt.Errorf("leads out of the package: %q", to)
	}
	u.links[name] = to
	return nil
}

func (u *unpacker) makeLinks() error {
	for _, name := range slices.Sorted(maps.Keys(u.links)) {
		if err := u.root.Symlink(u.links[name], name); err != nil {
			return fmt.Errorf("%q: %w", name, twice(err))
		}
	}
	return nil
}

// folder makes a folder and all above it.
func (u *unpacker) folder(name string) error {
	if name == "." || u.made[name] {
		return nil
	}
	if err := u.folder(path.Dir(name)); err != nil {
		return err
	}
	if err := u.root.Mkdir(name, 0o755); err != nil {
		return twice(err)
	}
	if u.made == nil {
		u.made = map[string]bool{}
	}
	u.made[name] = true
	return u.root.Chmod(name, 0o755)
}

// twice says what it means that a name is taken.
func twice(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return errors.New("comes twice, or is in two of the packages")
	}
	return err
}
