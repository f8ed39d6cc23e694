package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// NotFoundError says that no kernel of the root has the release Name.
type NotFoundError struct {
	Name string
	Near []string // the releases of the same series, or all when it has none; ascending
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("find kernel release %q: no such kernel", e.Name)
}

// Find returns every kernel of the root, ascending by Compare: each that has a
// folder in /lib/modules or /usr/lib/modules, or headers in /usr/src, and on
// the host the running one, even when it has nothing of that.
//
// A folder of these that cannot be listed is an error, unless it is absent.
// Of each kernel only .config, the Makefile and one file of a line are read.
func Find(root Root) ([]Release, error) {
	s, err := newSurvey(root)
	if err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	releases := make([]Release, len(names))
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i, name := range names {
		g.Go(func() error {
			releases[i] = s.describe(name)
			return nil
		})
	}
	return releases, g.Wait()
}

// Get returns one kernel as Find describes it, without a look at the others.
// The error is a *NotFoundError when the root has no such release.
func Get(root Root, name string) (Release, error) {
	s, err := newSurvey(root)
	if err != nil {
		return Release{}, err
	}
	if isRelease(name) {
		if r := s.describe(name); r.Running || r.Modules != "" || r.Tree != nil || r.Err != nil {
			return r, nil
		}
	}
	names, err := s.names()
	if err != nil {
		return Release{}, err
	}
	if slices.Contains(names, name) { // headers alone, and not fit for use
		return s.describe(name), nil
	}
	near := slices.DeleteFunc(slices.Clone(names), func(other string) bool {
		return !slices.Equal(series(name), series(other))
	})
	if len(near) == 0 {
		near = names
	}
	return Release{}, &NotFoundError{Name: name, Near: near}
}

// At returns the kernel that a folder of the root is the build tree of, such as one where
// somebody has built a kernel. Only Name, Arch, Tree and what is missing are set.
func At(root Root, tree string) (Release, error) {
	s, err := newSurvey(root)
	if err != nil {
		return Release{}, err
	}
	r := Release{Name: s.builtFor(tree), Root: root}
	if r.Name == "" && s.err == nil {
		s.err = errors.New("no include/generated/utsrelease.h says for which kernel it is")
	}
	if r.Tree, r.Missing = s.openTree(tree, r.Name); r.Tree != nil {
		r.Arch, err = r.Tree.Config.machine()
		s.saw(err)
	}
	if s.err != nil {
		return Release{}, fmt.Errorf("read build tree %s: %w", tree, s.err)
	}
	return r, nil
}

// Machine returns what uname -m says here, for instance "x86_64".
func Machine() (string, error) {
	_, machine, err := uname()
	return machine, err
}

// Running returns the release of the running kernel, as uname -r does.
func Running() (string, error) {
	release, _, err := uname()
	return release, err
}

func uname() (release, machine string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", fmt.Errorf("read name of running kernel: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]), nil
}

// survey is one look at the kernels of a root.
type survey struct {
	root    Root
	running string // "" under a root other than the host's
	machine string // the same
	err     error  // the first look that failed otherwise than for want of what was looked for
}

func newSurvey(root Root) (*survey, error) {
	s := &survey{root: root}
	if _, err := os.Stat(string(root) + "/"); err != nil {
		return s, fmt.Errorf("find kernels: %w", err)
	}
	var err error
	if root.IsHost() {
		s.running, s.machine, err = uname()
	}
	return s, err
}

// moduleFolders hold a folder for each release: /lib/modules is where the
// kernel's tools look, the other where it lives on a merged /usr.
var moduleFolders = []string{"/lib/modules/", "/usr/lib/modules/"}

// names returns the releases of the root, ascending.
func (s *survey) names() ([]string, error) {
	found := map[string]bool{}
	for _, folder := range moduleFolders {
		entries, err := s.list(folder)
		if err != nil {
			return nil, err
		}
		for _, name := range entries {
			found[name] = true
		}
	}
	headers, err := s.headers()
	if err != nil {
		return nil, err
	}
	for _, name := range headers {
		found[name] = true
	}
	found[s.running] = true
	maps.DeleteFunc(found, func(name string, _ bool) bool { return !isRelease(name) })
	return slices.SortedFunc(maps.Keys(found), Compare), nil
}

// isRelease reports whether a name can be a release: it begins with a version
// and names a folder. Arch's /lib/modules/extramodules-6.1 is not a kernel.
func isRelease(name string) bool {
	return name != "" && isDigit(name[0]) && !strings.Contains(name, "/")
}

// series is the numbers that releases with the same interfaces share, 6.1.
func series(release string) []int {
	v := VersionOf(release)
	return v[:2]
}

// list returns the names in a folder of the root that are not plain files.
// An absent folder is an empty one.
func (s *survey) list(folder string) ([]string, error) {
	entries, err := s.root.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find kernels: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// saw keeps the error of a look, unless nothing is there, or nothing that this user may see.
func (s *survey) saw(err error) {
	var failed *fs.PathError // of a system call
	if s.err != nil || !errors.As(err, &failed) {
		return
	}
	switch failed.Err {
	case unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.EPERM, unix.ELOOP, unix.ENAMETOOLONG:
	default:
		s.err = err
	}
}

// describe says what the root has of a release.
func (s *survey) describe(name string) Release {
	own := &survey{root: s.root, running: s.running, machine: s.machine}
	r := own.look(name)
	if own.err != nil { // what was not seen may be there
		r.Err, r.Tree = own.err, nil
		r.Missing = []Missing{{What: fmt.Sprintf("kernel %s cannot be looked at: %v", name, own.err)}}
	}
	return r
}

func (s *survey) look(name string) Release {
	r := Release{
		Name:    name,
		Root:    s.root,
		Arch:    s.machine,
		Running: name == s.running,
		Modules: s.first("/lib/modules/"+name, "/usr/lib/modules/"+name),
		Image:   s.first("/boot/vmlinuz-"+name, "/lib/modules/"+name+"/vmlinuz", "/usr/lib/modules/"+name+"/vmlinuz"),
	}
	r.Tree, r.Missing = s.tree(name)
	if r.Tree != nil {
		machine, err := r.Tree.Config.machine()
		s.saw(err)
		r.Arch = cmp.Or(machine, r.Arch)
		return r
	}
	if r.Missing == nil && r.Running && r.Modules == "" {
		r.Missing = []Missing{{What: "the running kernel " + name + " has no /lib/modules folder here: it is a container's or a provider's kernel"}}
	}
	if r.Missing == nil {
		r.Missing = []Missing{{What: notInstalled(name), Remedy: s.install(name)}}
	}
	return r
}

// first returns the first of some names that exists in the root, or "".
func (s *survey) first(names ...string) string {
	for _, name := range names {
		_, err := s.root.Path(name)
		if err == nil {
			return name
		}
		s.saw(err)
	}
	return ""
}
