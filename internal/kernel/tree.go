package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// treePlaces returns where the build tree of a release can be, the best first.
func (s *survey) treePlaces(release string) []string {
	places := []string{
		"/lib/modules/" + release + "/build",
		"/usr/lib/modules/" + release + "/build",
		"/usr/src/linux-headers-" + release, // Debian, Ubuntu, Alpine
		"/usr/src/kernels/" + release,       // Fedora, RHEL
	}
	// openSUSE: 6.4.0-150600.23.7-default is linux-6.4.0-150600.23.7-obj/x86_64/default.
	if base, flavour := cutFlavour(release); flavour != "" {
		objects := "/usr/src/linux-" + base + "-obj/"
		arches, _ := s.list(objects) // what cannot be listed has no tree for us
		for _, arch := range arches {
			places = append(places, objects+arch+"/"+flavour)
		}
	}
	return places
}

// headers returns the releases that have headers in /usr/src. A folder there
// without a configuration is no tree but a part that several trees share, such
// as Debian's linux-headers-6.1.0-56-common.
func (s *survey) headers() ([]string, error) {
	sources, err := s.list("/usr/src")
	if err != nil {
		return nil, err
	}
	names, err := s.list("/usr/src/kernels")
	if err != nil {
		return nil, err
	}
	for _, source := range sources {
		if name, ok := strings.CutPrefix(source, "linux-headers-"); ok {
			own := &survey{root: s.root}
			if own.configOf("/usr/src/"+source) != "" || own.err != nil { // what cannot be looked at is told of that kernel
				names = append(names, name)
			}
		}
		objects, ok := strings.CutSuffix(source, "-obj")
		base, linux := strings.CutPrefix(objects, "linux-")
		if !ok || !linux {
			continue
		}
		arches, err := s.list("/usr/src/" + source)
		if err != nil {
			return nil, err
		}
		for _, arch := range arches {
			flavours, err := s.list("/usr/src/" + source + "/" + arch)
			if err != nil {
				return nil, err
			}
			for _, flavour := range flavours {
				names = append(names, base+"-"+flavour)
			}
		}
	}
	return names, nil
}

// configOf returns the name of a tree's configuration, or "".
func (s *survey) configOf(tree string) string {
	return s.first(tree+"/.config", tree+"/include/config/auto.conf")
}

// tree returns the first build tree of a release that can be used. When there
// is none, it returns what the first that is there lacks, or neither when there
// is no trace of one.
func (s *survey) tree(release string) (*Tree, []Missing) {
	var missing []Missing
	for _, place := range s.treePlaces(release) {
		tree, lacks := s.openTree(place, release)
		if tree != nil {
			return tree, nil
		}
		if missing == nil {
			missing = lacks
		}
	}
	return nil, missing
}

// openTree checks one place. Both results are nil when nothing is there.
func (s *survey) openTree(place, release string) (*Tree, []Missing) {
	host, err := s.root.Path(place)
	if err != nil {
		s.saw(err)
		return nil, s.broken(place, release)
	}
	tree := &Tree{Path: s.root.Inside(host), Host: host}
	missing := s.withoutParts(tree.Path, release)
	lacks := func(what string) {
		missing = append(missing, Missing{What: "build tree " + tree.Path + " " + what, Remedy: s.reinstall(tree.Path, release)})
	}
	if tree.Config, tree.ConfigFile, err = s.readConfig(tree); err != nil {
		s.saw(err)
		lacks(err.Error())
	}
	if tree.Symvers, err = s.file(tree, "Module.symvers"); err != nil {
		s.saw(err)
		lacks("has no Module.symvers, the list of the kernel's symbols")
	}
	if other := s.builtFor(tree.Path); other != "" && other != release {
		lacks("is for kernel " + other)
	}
	if missing != nil {
		return nil, missing
	}
	tree.CC, err = tree.Config.compiler()
	s.saw(err)
	return tree, nil
}

// file returns the host path of a file of a tree. One that lies in the tree's own folder is
// where it is; links and folders have to be followed inside the root.
func (s *survey) file(tree *Tree, name string) (host string, err error) {
	if filepath.Base(name) == name {
		host = filepath.Join(tree.Host, name)
		if info, err := os.Lstat(host); err == nil && info.Mode().IsRegular() {
			return host, nil
		}
	}
	return s.root.Path(tree.Path + "/" + name)
}

// withoutParts says what of a tree is not there that packages share: Debian has it in packages
// of their own, which links and the Makefile name. Under a root that lacks them, kbuild would
// take this machine's.
func (s *survey) withoutParts(tree, release string) (missing []Missing) {
	lacks := func(part string) {
		m := Missing{"headers for " + release + " are incomplete: " + part + " does not exist", s.reinstall(tree, release), partPackage(part, tree)}
		if p := s.packager(); m.Package != "" && p.install == "apt install" {
			m.Remedy = p.install + " " + m.Package
		}
		missing = append(missing, m)
	}
	if s.first(tree+"/scripts") == "" {
		part, _ := s.target(tree, "scripts")
		lacks(part)
	}
	text, err := s.root.ReadFile(tree + "/Makefile")
	if err == nil {
		if common := included(string(text)); common != "" && s.first(common) == "" {
			lacks(common)
		}
		return missing
	}
	s.saw(err)
	if part, linked := s.target(tree, "Makefile"); linked {
		lacks(part)
	} else {
		missing = append(missing, Missing{What: "build tree " + tree + " has no Makefile", Remedy: s.reinstall(tree, release)})
	}
	return missing
}

// target returns where a name in a folder leads, or would; linked is false when it is no link.
func (s *survey) target(dir, name string) (target string, linked bool) {
	target = filepath.Join(dir, name)
	folder, err := s.root.Path(dir)
	if err != nil {
		return target, false
	}
	link, err := os.Readlink(filepath.Join(folder, name))
	switch {
	case err != nil:
		return target, false
	case filepath.IsAbs(link):
		return link, true
	}
	return filepath.Join(dir, link), true
}

// included returns the file that a Makefile of one line includes by an absolute path, as
// Debian's do (include /usr/src/linux-headers-6.1.0-56-common/Makefile), or "".
func included(makefile string) string {
	if path, ok := strings.CutPrefix(strings.TrimSpace(makefile), "include "); ok && filepath.IsAbs(path) && !strings.Contains(path, "\n") {
		return path
	}
	return ""
}

// partPackage returns the package of Debian or Ubuntu that a file is in, by its folder's name; ""
// for one in the tree itself.
func partPackage(file, tree string) string {
	for name := range strings.SplitSeq(file, "/") {
		if name != filepath.Base(tree) && (strings.HasPrefix(name, "linux-kbuild-") || strings.HasPrefix(name, "linux-headers-")) {
			return name
		}
	}
	return ""
}

// broken says what is wrong with a build link that leads nowhere.
func (s *survey) broken(place, release string) []Missing {
	folder, err := s.root.Path(filepath.Dir(place))
	if err != nil {
		return nil
	}
	target, err := os.Readlink(filepath.Join(folder, filepath.Base(place)))
	if err != nil {
		return nil
	}
	what := fmt.Sprintf("%s (%s leads to %s, which cannot be opened)", notInstalled(release), place, target)
	return []Missing{{What: what, Remedy: s.install(release)}}
}

func notInstalled(release string) string {
	return "headers for " + release + " are not installed"
}

// readConfig returns a tree's configuration, and its file as this process opens it.
func (s *survey) readConfig(tree *Tree) (config Config, file string, err error) {
	name := s.configOf(tree.Path)
	if name == "" {
		return config, "", errors.New("has no .config")
	}
	if file, err = s.file(tree, strings.TrimPrefix(name, tree.Path+"/")); err == nil {
		config, err = readConfig(s.root, name)
	}
	if failed := (*fs.PathError)(nil); errors.As(err, &failed) {
		err = fmt.Errorf("has a .config that cannot be read: %w", err)
	} else if err != nil {
		err = fmt.Errorf("has a damaged .config: %w", err)
	}
	return config, file, err
}

// builtFor returns the release that modules built in a tree will carry in their
// vermagic, or "". It differs when a build link leads to sources that were
// configured anew since. (include/config/kernel.release is no witness: Debian's
// says 6.1.192 for 6.1.0-56-amd64.)
func (s *survey) builtFor(tree string) string {
	line, err := s.root.ReadFile(tree + "/include/generated/utsrelease.h")
	if err != nil {
		s.saw(err)
		return ""
	}
	_, quoted, _ := strings.Cut(string(line), `#define UTS_RELEASE "`)
	release, _, _ := strings.Cut(quoted, `"`)
	return release
}
