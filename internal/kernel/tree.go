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
	var missing []Missing
	lacks := func(what string) {
		missing = append(missing, Missing{"build tree " + tree.Path + " " + what, s.reinstall(tree.Path, release)})
	}
	if s.first(tree.Path+"/Makefile") == "" {
		lacks("has no Makefile")
	}
	if tree.Config, err = s.readConfig(tree.Path); err != nil {
		s.saw(err)
		lacks(err.Error())
	}
	if tree.Symvers, err = s.root.Path(tree.Path + "/Module.symvers"); err != nil {
		s.saw(err)
		lacks("has no Module.symvers, the list of the kernel's symbols")
	}
	if target, remedy := s.withoutScripts(tree.Path, release); target != "" {
		missing = append(missing, Missing{"headers for " + release + " are incomplete: " + target + " does not exist", remedy})
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

// withoutScripts returns where a tree's scripts should be, when they are not there,
// and what brings them. Debian has them in a package of their own, which a link
// names; under a root that lacks it, kbuild would take this machine's.
func (s *survey) withoutScripts(tree, release string) (target, remedy string) {
	target = tree + "/scripts"
	if s.first(target) != "" {
		return "", ""
	}
	remedy = s.reinstall(tree, release)
	folder, err := s.root.Path(tree)
	if err != nil {
		return target, remedy
	}
	link, err := os.Readlink(filepath.Join(folder, "scripts"))
	if err != nil {
		return target, remedy
	}
	if target = link; !filepath.IsAbs(link) {
		target = filepath.Join(tree, link)
	}
	for name := range strings.SplitSeq(target, "/") {
		if p := s.packager(); strings.HasPrefix(name, "linux-kbuild-") && p.install == "apt install" {
			remedy = p.install + " " + name
		}
	}
	return target, remedy
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
	return []Missing{{what, s.install(release)}}
}

func notInstalled(release string) string {
	return "headers for " + release + " are not installed"
}

func (s *survey) readConfig(tree string) (Config, error) {
	name := s.configOf(tree)
	if name == "" {
		return Config{}, errors.New("has no .config")
	}
	config, err := readConfig(s.root, name)
	if failed := (*fs.PathError)(nil); errors.As(err, &failed) {
		return Config{}, fmt.Errorf("has a .config that cannot be read: %w", err)
	} else if err != nil {
		return Config{}, fmt.Errorf("has a damaged .config: %w", err)
	}
	return config, nil
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
