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
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return failed("make mounts private", err)
	}
	// Everything is opened before anything is covered: the copy and the root may lie in /tmp.
	source, err := openDir(w.Source)
	if err != nil {
		return err
	}
	from := make([]int, len(w.Binds))
	for i, b := range w.Binds {
		if from[i], err = openDir(b.From); err != nil {
			return err
		}
	}
	points, err := missingPoints(w.Binds)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return failed("mount /tmp", err)
	}
	for i, p := range points {
		if err := p.cover(i); err != nil {
			return err
		}
	}
	for i, b := range w.Binds {
		if err := bindAt(from[i], b.At); err != nil {
			return err
		}
	}
	if err := bindAt(source, w.Work); err != nil {
		return err
	}
	// Last: the descriptors above were reached through the old one.
	return failed("mount /proc", unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
}

func openDir(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, failed("open "+path, err)
}

func bindAt(fd int, at string) error {
	if under(at, "/tmp") { // ours, and empty
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
		if _, err := os.Stat(b.At); err == nil || under(b.At, "/tmp") {
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
