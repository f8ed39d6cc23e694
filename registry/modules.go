package registry

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
)

const (
	ourDir   = "updates/kmodctl" // below /lib/modules/R; depmod's search order puts updates first
	tempName = ".kmodctl-tmp-"   // begins every name of ours that must not outlive a command
)

// newName is a file's name before it gets its own, oldName the one it keeps until
// the change is final. Neither ends in .ko, or depmod would index it.
func newName(name string) string { return tempOf(name, "-new") }
func oldName(name string) string { return tempOf(name, "-old") }

func tempOf(name, end string) string { return path.Join(path.Dir(name), tempName+path.Base(name)+end) }

// modules is /lib/modules/R of one kernel release. Everything under it goes
// through tree: no link leads out.
type modules struct {
	release string
	root    kernel.Root
	inside  string // /lib/modules/R
	host    string // as this process opens it, free of links
	tree    *os.Root
	dir     *os.File       // the same, once many files of it are looked at
	places  []string       // folders below it that the change is about, ours the first
	undo    []func() error // what takes back the change so far, last first
}

// modulesPath is the folder of a release as named inside a root.
func modulesPath(release string) string { return "/lib/modules/" + release }

// kernelName reports whether a release could be one.
func kernelName(release string) bool {
	return release != "" && release[0] != '.' && release[0] != '-' && !strings.ContainsAny(release, "/\x00")
}

// openModules opens a release's folder. The error is a *NoModulesError when there
// is none.
func openModules(root kernel.Root, release string) (*modules, error) {
	if !kernelName(release) {
		return nil, fmt.Errorf("%q is not a kernel release", release)
	}
	m := &modules{release: release, root: root, inside: modulesPath(release)}
	var err error
	if m.host, err = root.Path(m.inside); errors.Is(err, fs.ErrNotExist) {
		return nil, &NoModulesError{Release: release, Path: m.inside}
	} else if err != nil {
		return nil, err
	}
	if m.tree, err = os.OpenRoot(m.host); err != nil {
		return nil, err
	}
	if err := m.use(nil); err != nil {
		m.tree.Close()
		return nil, err
	}
	return m, nil
}

// use makes the folders of rows those that a change is about, beside ours. They may not be
// links: what lies behind one is not ours.
func (m *modules) use(rows []Install) error {
	m.places = []string{ourDir}
	for _, i := range rows {
		if place := path.Dir(m.name(i.Path)); !slices.Contains(m.places, place) {
			m.places = append(m.places, place)
		}
	}
	for _, d := range m.folders() {
		info, err := m.tree.Lstat(d)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a folder", path.Join(m.inside, d))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// folders are the places and those that they lie in, the outer ones first.
func (m *modules) folders() (dirs []string) {
	for _, d := range m.places {
		for ; d != "."; d = path.Dir(d) {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

func (m *modules) Close() error {
	if m.dir != nil {
		m.dir.Close()
	}
	return m.tree.Close()
}

// path is a file below the release's folder as named inside the root; name is the reverse.
func (m *modules) path(name string) string   { return path.Join(m.inside, name) }
func (m *modules) name(inside string) string { return strings.TrimPrefix(inside, m.inside+"/") }

// digest returns the SHA-256 of a file below the release's folder and its mtime in ns since 1970:
// "" when it does not exist, and words that are no digest when it is no regular file.
func (m *modules) digest(name string) (digest string, mtime int64, err error) {
	info, err := m.tree.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, nil
	} else if err != nil {
		return "", 0, err
	}
	if info.IsDir() {
		return "", 0, fmt.Errorf("%s is a folder", m.path(name))
	}
	if !info.Mode().IsRegular() {
		return "no regular file", 0, nil
	}
	digest, err = digestFile(m.tree, name)
	return digest, info.ModTime().UnixNano(), err
}

// digestFile returns the SHA-256 in hex of a regular file of tree.
func digestFile(tree *os.Root, name string) (string, error) {
	f, err := tree.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hexSum(sum), nil
}

// stamp notes in rows the mtime of their files.
func (m *modules) stamp(rows []Install) error {
	for i := range rows {
		info, err := m.tree.Lstat(m.name(rows[i].Path))
		if err != nil {
			return err
		}
		rows[i].Mtime = info.ModTime().UnixNano()
	}
	return nil
}

// apply makes the files what steps say and leaves in m.undo the way back. blob
// opens the content of a file. All space is taken before the first file changes.
func (m *modules) apply(steps []step, blob func(digest string) (io.ReadCloser, error)) error {
	if err := m.sweep(); err != nil {
		return err
	}
	if err := m.makeDirs(); err != nil {
		return err
	}
	for _, s := range steps {
		if s.places() {
			if err := m.stage(s, blob); err != nil {
				return fmt.Errorf("write %s: %w", s.row.Path, err)
			}
		}
	}
	for _, s := range steps {
		if err := m.flip(s); err != nil {
			return fmt.Errorf("%s %s: %w", s.action, s.row.Path, err)
		}
	}
	for _, d := range m.places {
		if err := syncDir(m.tree, d); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes updates and updates/kmodctl, and other folders of the change.
func (m *modules) makeDirs() error {
	for _, d := range m.folders() {
		if err := m.tree.Mkdir(d, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("make %s: %w", path.Join(m.inside, d), bare(err))
		}
		m.undo = append(m.undo, func() error { return m.tree.Remove(d) })
		if err := m.tree.Chmod(d, 0o755); err != nil {
			return err
		}
		if err := syncDir(m.tree, path.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

// stage writes the new content under a temporary name.
func (m *modules) stage(s step, blob func(string) (io.ReadCloser, error)) error {
	src, err := blob(s.row.Digest)
	if err != nil {
		return err
	}
	defer src.Close()
	name := newName(m.name(s.row.Path))
	m.undo = append(m.undo, func() error { return m.takeAway(name) })
	return bare(writeNew(m.tree, name, src))
}

// writeNew writes a file that must not be there, and has it on the disk.
func writeNew(tree *os.Root, name string, src io.Reader) error {
	f, err := tree.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	return errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
}

// flip gives a staged file its name, or takes a file's name away. The old file
// keeps a temporary one, so that the way back needs no space.
func (m *modules) flip(s step) error {
	name := m.name(s.row.Path)
	fresh, old := newName(name), oldName(name)
	switch s.action {
	case actInstall:
		m.undo = append(m.undo, func() error { return m.takeAway(name) })
		return bare(m.tree.Rename(fresh, name))
	case actReplace:
		if err := m.tree.Link(name, old); err != nil {
			return bare(err)
		}
		m.undo = append(m.undo, func() error { return m.putBack(old, name) })
		return bare(m.tree.Rename(fresh, name))
	case actRemove:
		err := m.tree.Rename(name, old)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody removed it before us
		}
		m.undo = append(m.undo, func() error { return m.putBack(old, name) })
		return bare(err)
	}
	return nil
}

// takeAway removes a file, if it is there: a read-only disk refuses the removal even of what is not.
func (m *modules) takeAway(name string) error {
	if _, err := m.tree.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return m.tree.Remove(name)
}

// putBack gives a file its old name again, if it had lost it. rename(2) does nothing when both names
// are already the same file, hence the second step.
func (m *modules) putBack(old, name string) error {
	if _, err := m.tree.Lstat(old); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := m.tree.Rename(old, name); err != nil {
		return err
	}
	return ignoreAbsent(m.tree.Remove(old))
}

// rollBack takes the change back, durably: the intent that could do it again goes next.
// After an error, the state is neither.
func (m *modules) rollBack() error {
	var errs []error
	for _, undo := range slices.Backward(m.undo) {
		errs = append(errs, undo())
	}
	m.undo = nil
	return errors.Join(errors.Join(errs...), m.sweep(), m.sync())
}

// sync makes the names of our files and of the index durable.
func (m *modules) sync() error {
	for _, d := range append(m.folders(), ".") {
		if err := ignoreAbsent(syncDir(m.tree, d)); err != nil {
			return err
		}
	}
	return nil
}

// settle makes the change final: the old files go, and its folders when nothing
// is left in them.
func (m *modules) settle() error {
	m.undo = nil
	if err := m.sweep(); err != nil {
		return err
	}
	for _, d := range slices.Backward(m.folders()) {
		if err := ignoreAbsent(m.tree.Remove(d)); err != nil && !errors.Is(err, fs.ErrExist) { // it is not empty
			return err
		}
	}
	return nil
}

// depmodTemp is the name of a file that depmod is writing: name, pid, microseconds
// and seconds (kmod, tools/depmod.c, depmod_output).
var depmodTemp = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^modules\.[a-z.]+\.([0-9]+)\.[0-9]+\.[0-9]+$`) })

// sweep removes temporary names: ours, and those of a depmod that was killed.
func (m *modules) sweep() error {
	var errs []error
	for _, d := range m.places {
		names, err := readNames(m.tree, d)
		errs = append(errs, err)
		for _, name := range names {
			if strings.HasPrefix(name, tempName) {
				errs = append(errs, m.tree.Remove(path.Join(d, name)))
			}
		}
	}
	index, err := readNames(m.tree, ".")
	errs = append(errs, err)
	for _, name := range index {
		if found := depmodTemp().FindStringSubmatch(name); found != nil && !depmodRuns(found[1]) {
			errs = append(errs, ignoreAbsent(m.tree.Remove(name)))
		}
	}
	return errors.Join(errs...)
}

// depmodRuns reports whether a pid is, for all we can know, that of a depmod.
func depmodRuns(pid string) bool {
	n, err := strconv.Atoi(pid)
	if err != nil || errors.Is(unix.Kill(n, 0), unix.ESRCH) {
		return false
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat") // "123 (depmod) S ...", proc(5)
	if err != nil {
		return true
	}
	state, ok := strings.CutPrefix(string(stat), pid+" (depmod) ")
	return ok && !strings.HasPrefix(state, "Z")
}

// bare takes the path off an error of a file: the caller names it as people do.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
