package build

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount makes the file system that the build sees: this machine's, with a /tmp and
// a /proc of its own, the copy of the source at a fixed place, and the folders of a
// root where kbuild expects them. The namespace ends with the process, and all of
// this with it.
func (w *wall) mount() error {
	if err := PrivateMounts(); err != nil {
		return err
	}
	// Everything is opened before anything is covered: the copy and the root may lie in /tmp.
	parts, err := openDirs(w.Binds)
	if err != nil {
		return err
	}
	copies, err := openDirs(w.copies())
	if err != nil {
		return err
	}
	points, err := missingPoints(w.Binds)
	if err != nil {
		return err
	}
	for dir, options := range map[string]string{"/tmp": "mode=1777,size=25%,nr_inodes=100k", "/run": "mode=755"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil && !(dir == "/run" && err == unix.ENOENT) {
			return failed("mount "+dir, err)
		}
	}
	for i, p := range points {
		if err := p.cover(i); err != nil {
			return err
		}
	}
	if err := bindAll(parts, w.Binds); err != nil {
		return err
	}
	// A copy's place may be in a folder of a root.
	missing, err := missingPoints(w.copies())
	if err != nil {
		return err
	}
	for i, p := range missing {
		if err := p.cover(len(points) + i); err != nil {
			return err
		}
	}
	if err := bindAll(copies, w.copies()); err != nil {
		return err
	}
	// After them: the descriptors above were reached through the old one.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return failed("mount /proc", err)
	}
	return w.readOnly()
}

// readOnly lets the build write to its copy and its /tmp alone. Before Linux 5.12
// what the user may write stays so.
func (w *wall) readOnly() error {
	set := func(path string, flags uint, attr unix.MountAttr) error {
		return unix.MountSetattr(unix.AT_FDCWD, path, flags, &attr)
	}
	err := set("/", unix.AT_RECURSIVE, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err == unix.ENOSYS {
		return nil
	}
	for _, b := range append(w.copies(), bind{At: "/tmp"}) {
		if err == nil {
			err = set(b.At, 0, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		}
	}
	return failed("make mounts read-only", err)
}

// PrivateMounts keeps the mounts to come, in a mount namespace of the caller's own, from everybody else. In a chroot
// "/" is no mount, and only a mount can be made private: it is made one first. That holds for the calling
// thread and what it executes.
func PrivateMounts() error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == unix.EINVAL {
		err = mountChroot()
	}
	return failed("make mounts private", err)
}

// mountChroot steps out of the chroot, to the root of our namespace, mounts the
// chroot's folder onto itself there, and goes back in.
func mountChroot() error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	namespace, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// setns(2) wants a thread that shares its root folder with no other; with ours it
	// takes us to the namespace's own root.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(namespace, unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	path, err := unix.Getwd()
	if err != nil {
		return err
	}
	if err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Chdir(path); err != nil { // onto the new mount
		return err
	}
	return unix.Chroot(".")
}

func openDir(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, failed("open "+path, err)
}

func openDirs(binds []bind) (fds []int, err error) {
	for _, b := range binds {
		fd, err := openDir(b.From)
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func bindAll(fds []int, binds []bind) error {
	for i, b := range binds {
		if err := bindAt(fds[i], b.At); err != nil {
			return err
		}
	}
	return nil
}

func bindAt(fd int, at string) error {
	if covered(at) { // ours, and empty
		if err := os.MkdirAll(at, 0o755); err != nil {
			return failed("make "+at, err)
		}
	}
	return failed("bind "+at, unix.Mount(descriptor(fd), at, "", unix.MS_BIND|unix.MS_REC, ""))
}

func descriptor(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// point is a folder of this machine that lacks folders to mount on.
type point struct {
	dir    string
	fd     int      // dir, opened before it is covered
	absent []string // relative to dir
}

// missingPoints finds, for every place that this machine does not have, the
// deepest folder above it that it has.
func missingPoints(binds []bind) ([]*point, error) {
	var points []*point
	for _, b := range binds {
		if _, err := os.Stat(b.At); err == nil || covered(b.At) {
			continue
		}
		dir := filepath.Dir(b.At)
		real, err := filepath.EvalSymlinks(dir)
		for err != nil && dir != "/" {
			dir = filepath.Dir(dir)
			real, err = filepath.EvalSymlinks(dir)
		}
		absent, _ := filepath.Rel(dir, b.At)
		if points, err = addPoint(points, real, absent); err != nil {
			return nil, err
		}
	}
	// The outer ones first, or they would cover the inner ones.
	slices.SortFunc(points, func(a, b *point) int { return strings.Compare(a.dir, b.dir) })
	return points, nil
}

func addPoint(points []*point, dir, absent string) ([]*point, error) {
	if i := slices.IndexFunc(points, func(p *point) bool { return p.dir == dir }); i >= 0 {
		points[i].absent = append(points[i].absent, absent)
		return points, nil
	}
	if dir == "/" {
		return nil, failed("mount on /"+absent, unix.ENOENT) // nothing can cover "/" itself
	}
	fd, err := openDir(dir)
	return append(points, &point{dir, fd, []string{absent}}), err
}

// cover lays a read-only overlay over p.dir that adds the absent folders. Writing
// them into this machine's own would outlive us.
func (p *point) cover(n int) error {
	empty := filepath.Join(workRoot, "mount-points", strconv.Itoa(n))
	for _, rel := range p.absent {
		if err := os.MkdirAll(filepath.Join(empty, rel), 0o755); err != nil {
			return failed("make "+rel, err)
		}
	}
	err := unix.Mount("overlay", p.dir, "overlay", unix.MS_RDONLY, "lowerdir="+empty+":"+descriptor(p.fd))
	return failed("add mount points to "+p.dir+" by an overlay", err)
}
