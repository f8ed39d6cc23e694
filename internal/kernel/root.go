package kernel

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is the folder that every path is taken under: "/" is this machine.
// Links inside it lead where they would lead after chroot(2) into it.
//
// Its methods take names as seen inside the root, cleaned as text first. Under
// a root other than "/" they use openat2(2) with RESOLVE_IN_ROOT, Linux 5.6.
// errors.Is(err, fs.ErrNotExist) tells a missing file.
type Root string

// IsHost reports whether r is this machine itself, so that facts of the running
// kernel (uname, /proc, /sys) belong to it.
func (r Root) IsHost() bool { return r == "" || filepath.Clean(string(r)) == "/" }

// Path resolves name inside r and returns the path by which this process opens
// it, free of links.
func (r Root) Path(name string) (string, error) {
	if r.IsHost() {
		return filepath.EvalSymlinks(filepath.Join("/", name))
	}
	f, err := r.openat2(name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// Open opens name inside r for reading. It cannot be led out of the root, even
// if a link is put in the way meanwhile, and does not wait for a FIFO's writer.
func (r Root) Open(name string) (*os.File, error) {
	if r.IsHost() {
		return os.OpenFile(filepath.Join("/", name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	return r.openat2(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
}

// ReadFile returns the content of name inside r.
func (r Root) ReadFile(name string) ([]byte, error) {
	if r.IsHost() {
		return os.ReadFile(filepath.Join("/", name))
	}
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// ReadDir returns the entries of the folder name inside r, sorted by name.
func (r Root) ReadDir(name string) ([]os.DirEntry, error) {
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// Inside is the reverse of Path: the name inside r of a host path below r.
// A path that is not below r comes back as it is.
func (r Root) Inside(host string) string {
	if r.IsHost() {
		return host
	}
	root, err := filepath.Abs(string(r))
	if err != nil {
		return host
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return host
	}
	rel, err := filepath.Rel(root, host)
	if err != nil || !filepath.IsLocal(rel) {
		return host
	}
	return filepath.Join("/", rel)
}

// openat2 opens name inside a root other than "/".
func (r Root) openat2(name string, flags uint64) (*os.File, error) {
	path := filepath.Join(string(r), filepath.Join("/", name))
	dir, err := os.Open(string(r))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	// The kernel says EAGAIN when something was renamed or mounted while it
	// resolved a "..", and cannot be sure to have stayed inside: openat2(2).
	const tries = 32
	for try := 1; ; try++ {
		fd, err := unix.Openat2(int(dir.Fd()), filepath.Join("/", name), &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && try < tries:
		default:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}
