package kernel

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Root is the folder that every path is taken under: "/" is this machine.
// Links inside it lead where they would lead after chroot(2) into it.
type Root string

// IsHost reports whether r is this machine itself, so that facts of the running
// kernel (uname, /proc, /sys) belong to it.
func (r Root) IsHost() bool { return r == "" || filepath.Clean(string(r)) == "/" }

// Path resolves name inside r and returns the path by which this process opens
// it, free of links. The error is an *os.PathError; errors.Is(err, fs.ErrNotExist)
// tells a missing file.
//
// It uses openat2(2) with RESOLVE_IN_ROOT, Linux 5.6.
func (r Root) Path(name string) (string, error) {
	if r.IsHost() {
		return filepath.EvalSymlinks(filepath.Join("/", name))
	}
	dir, err := os.Open(string(r))
	if err != nil {
		return "", err
	}
	defer dir.Close()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(dir.Fd()), filepath.Join("/", name), &how)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: filepath.Join(string(r), name), Err: err}
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// Inside is the reverse of Path: the name inside r of a host path below r.
func (r Root) Inside(host string) string {
	if r.IsHost() {
		return host
	}
	root, err := filepath.EvalSymlinks(string(r))
	if err != nil {
		return host
	}
	rel, err := filepath.Rel(root, host)
	if err != nil || !filepath.IsLocal(rel) {
		return host
	}
	return filepath.Join("/", rel)
}
