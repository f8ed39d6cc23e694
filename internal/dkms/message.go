package dkms

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"

	"kmodctl/internal/kernel"
)

// message is what the child is told: everything that it may know.
type message struct {
	Files []file            // in the order in which they are read
	Names []string          // variables that DKMS takes from them
	Vars  map[string]string // that a conf may use
	Uname [3]string         // uname -r, -m and -s
	Maps  []mapping         // places that are elsewhere for this process
	Root  string            // below which everything else is; "" for this machine's
	Reads []string          // all that may be read, as this process opens it

	UID, GID int // whom the child becomes
	Drop     bool
}

// file is one file to evaluate.
type file struct {
	Name string // for people
	Path string // $BASH_SOURCE
	Text string
}

// mapping says where a folder is that a conf knows by another name.
type mapping struct{ Name, Host string }

// values are variables as bash has them, an array by its indexes; a plain variable is index 0.
type values map[string]map[int]string

// first is what bash gives for a name without an index.
func (v values) first(name string) string { return v[name][0] }

// max is the highest index of some names, -1 without any.
func (v values) max(names ...string) int {
	highest := -1
	for _, name := range names {
		for i := range v[name] {
			highest = max(highest, i)
		}
	}
	return highest
}

// reply is what the child says.
type reply struct {
	Values values
	Set    map[string]place // where a variable is set, the last of the files that do
	Bare   map[string]bool  // set without an index
	Stderr string           // what the files wrote
	Fault  *Error
}

// place is a line of a file.
type place struct {
	File string
	Line int
}

// newMessage is about a source's own dkms.conf alone.
func newMessage(s Source, shown string, k kernel.Release, frame Framework) *message {
	tree := func(key, or string) string {
		if dir := frame[key]; dir != "" {
			return dir
		}
		return or
	}
	dkmsTree, sourceTree, installTree := tree("dkms_tree", "/var/lib/dkms"), tree("source_tree", "/usr/src"), tree("install_tree", "/lib/modules")
	build := filepath.Join(installTree, k.Name, "build")
	config := filepath.Join(build, ".config")
	if k.Tree != nil && filepath.Base(k.Tree.ConfigFile) == "auto.conf" {
		config = filepath.Join(build, "include/config/auto.conf")
	}
	own := filepath.Join(dkmsTree, s.Name, s.Version, "source")
	m := &message{
		Files: []file{{shown, filepath.Join(own, ConfFile), string(s.Text)}},
		Names: directives,
		Vars: map[string]string{
			"kernelver": k.Name, "arch": k.Arch, "kernel_source_dir": build, "kernel_config": config,
			"dkms_tree": dkmsTree, "source_tree": sourceTree, "install_tree": installTree, "tmp_location": tree("tmp_location", "/tmp"),
			"module": s.Name, "module_version": s.Version, "current_kernel": k.Name, "current_os": "Linux",
			"parallel_jobs": strconv.Itoa(runtime.NumCPU()),
		},
		Uname: [3]string{k.Name, k.Arch, "Linux"},
	}
	if !k.Root.IsHost() {
		m.Root, _ = filepath.Abs(string(k.Root)) // it fails only in a folder that is gone
	}
	if s.Dir != "" {
		for _, name := range []string{own, filepath.Join(sourceTree, s.Name+"-"+s.Version)} {
			m.addMap(name, s.Dir)
		}
		m.Reads = append(m.Reads, s.Dir)
	}
	m.addTree(k, build)
	return m
}

// addTree lets the conf read what it may of the kernel: its build tree, the folders that
// Debian's trees share, and the configuration in /boot.
func (m *message) addTree(k kernel.Release, build string) {
	if k.Tree != nil {
		m.addMap(build, k.Tree.Host)
		m.addMap(filepath.Join("/lib/modules", k.Name, "build"), k.Tree.Host)
		m.Reads = append(m.Reads, k.Tree.Host)
	}
	for _, name := range []string{"/usr/src", "/lib/modules/" + k.Name, "/boot/config-" + k.Name, m.Vars["dkms_tree"], m.Vars["source_tree"]} {
		if host, err := k.Root.Path(name); err == nil {
			m.Reads = append(m.Reads, host)
			m.addMap(name, host)
		}
	}
}

// addMap notes that what a conf knows as name is at host here, unless the name leads there by itself.
func (m *message) addMap(name, host string) {
	if real, err := filepath.EvalSymlinks(name); err == nil {
		if there, err := filepath.EvalSymlinks(host); err == nil && real == there {
			return
		}
	}
	m.Maps = append(m.Maps, mapping{name, host})
}

// Overrides lists the files of /etc/dkms that go over a source's dkms.conf for a kernel, those that
// are there, in the order in which DKMS reads them.
func Overrides(root kernel.Root, name, version, release, arch string) (files []string, err error) {
	for _, suffix := range []string{"", "-" + version, "-" + version + "-" + release, "-" + version + "-" + release + "-" + arch,
		"--" + release, "--" + release + "-" + arch} {
		file := "/etc/dkms/" + name + suffix + ".conf"
		switch _, err := root.Path(file); {
		case err == nil:
			files = append(files, file)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("look at %s: %w", file, err)
		}
	}
	return files, nil
}

func (m *message) addOverrides(k kernel.Release) error {
	names, err := Overrides(k.Root, m.Vars["module"], m.Vars["module_version"], k.Name, k.Arch)
	for _, name := range names {
		var text []byte
		if text, err = k.Root.ReadFile(name); err != nil {
			break
		}
		m.Files = append(m.Files, file{name, name, string(text)})
	}
	return err
}
