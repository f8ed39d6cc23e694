// Package dkms reads a dkms.conf, which is a program for bash, without bash.
//
// Evaluate is the place to start: what a dkms.conf says for one kernel, as plain
// data. The file is run by an interpreter in a child process of ours that can write
// nothing, reach no network and start no program but some twenty harmless ones, and that is
// ended when it takes too long or too much memory. What would not come out as under bash is refused.
//
// DKMS itself is the reference: version 3.4, and 3.0.10 where that is what Debian 12 has.
package dkms

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

// ConfFile is the name of the file in the folder of a source.
const ConfFile = "dkms.conf"

// Source is a folder with a dkms.conf.
type Source struct {
	Dir  string // as this process opens it; "" when only the text is at hand, and the conf then sees no other file of its source
	Text []byte // of its dkms.conf

	// As the source is registered; they choose the administrator's files. Empty: what the conf itself says.
	Name, Version string

	Directives []string // "NAME=VALUE", as CheckDirective has it: they go over all files
}

// Conf is a dkms.conf as DKMS would read it for one kernel: every directive with its
// default, MAKE_MATCH and PATCH_MATCH decided.
type Conf struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Modules []Module `json:"modules,omitempty"` // in the order of BUILT_MODULE_NAME's indexes
	Make    string   `json:"make,omitempty"`    // for bash; "" is kbuild's own: make -C $kernel_source_dir M=<build folder>
	Patches []string `json:"patches,omitempty"` // file names below patches/, in order, those that match

	PreBuild    string `json:"pre_build,omitempty"` // a script of the source and its arguments; run in the build folder
	PostBuild   string `json:"post_build,omitempty"`
	PostAdd     string `json:"post_add,omitempty"` // run in the source folder, as root
	PreInstall  string `json:"pre_install,omitempty"`
	PostInstall string `json:"post_install,omitempty"`
	PostRemove  string `json:"post_remove,omitempty"`

	AutoInstall    bool     `json:"autoinstall,omitempty"`
	Depends        []string `json:"depends,omitempty"` // BUILD_DEPENDS: names of packages
	DependsRebuild bool     `json:"depends_rebuild,omitempty"`
	NoWeakModules  bool     `json:"no_weak_modules,omitempty"`

	Excluded string   `json:"excluded,omitempty"` // why DKMS would not build for this kernel (exit 77); "" when it would
	Warnings []string `json:"warnings,omitempty"` // deprecated and misspelt directives, and what the conf wrote to standard error
}

// Module is one .ko of a Conf.
type Module struct {
	Name         string `json:"name"`                    // BUILT_MODULE_NAME, without .ko
	Location     string `json:"location,omitempty"`      // folder that it is built in, relative to the source; "" is its top
	Dest         string `json:"dest"`                    // the name that it is installed by
	DestLocation string `json:"dest_location,omitempty"` // folder below /lib/modules/RELEASE; DestLocation of this package has the distribution's say
	Strip        bool   `json:"strip,omitempty"`         // strip -g
	Excluded     string `json:"excluded,omitempty"`      // why this one is not built for this kernel
}

// Error is a dkms.conf, or a file of /etc/dkms, that cannot be read.
type Error struct {
	File   string
	Line   int // from 1; 0 when the fault is at none
	Reason string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("read %s: %s", e.File, e.Reason)
	}
	return fmt.Sprintf("read %s:%d: %s", e.File, e.Line, e.Reason)
}

// Evaluate reads a dkms.conf and the administrator's files of /etc/dkms that go over
// it, for one kernel; k needs no headers. An error is an *Error where the fault is the conf's.
func Evaluate(ctx context.Context, s Source, k kernel.Release) (Conf, error) {
	conf, _, err := evaluate(ctx, s, k)
	return conf, err
}

// evaluate also returns the variables that the Conf was made of.
func evaluate(ctx context.Context, s Source, k kernel.Release) (Conf, values, error) {
	frame, err := ReadFramework(ctx, k.Root, k.Name)
	if err != nil {
		return Conf{}, nil, err
	}
	shown := filepath.Join(s.Dir, ConfFile)
	if s.Name != "" { // the registry's: its folder is none that a person knows
		shown = filepath.Join("/var/lib/dkms", s.Name, s.Version, "source", ConfFile)
	}
	if s.Name == "" || s.Version == "" {
		// What the conf says decides which files go over it.
		r, err := newMessage(s, shown, k, frame).run(ctx)
		if err != nil {
			return Conf{}, nil, err
		}
		s.Name, s.Version = r.Values.first("PACKAGE_NAME"), r.Values.first("PACKAGE_VERSION")
		if conf, err := newConf(shown, r, k); s.Name == "" || s.Version == "" || strings.Contains(s.Name+s.Version, "/") {
			return conf, nil, err
		}
	}
	m := newMessage(s, shown, k, frame)
	if err := m.addOverrides(k); err != nil {
		return Conf{}, nil, err
	}
	r, err := m.run(ctx)
	if err != nil {
		return Conf{}, nil, err
	}
	r.direct(s.Directives, m.Vars)
	conf, err := newConf(shown, r, k)
	return conf, r.Values, err
}

// CheckDirective refuses a directive of a command line that is not "NAME=VALUE", or whose NAME no dkms.conf has.
func CheckDirective(text string) error {
	name, _, ok := strings.Cut(text, "=")
	switch {
	case !ok:
		return fmt.Errorf("directive %q is not NAME=VALUE", text)
	case slices.Contains(directives, name):
		return nil
	}
	if near := misspelt(name); near != "" {
		return fmt.Errorf("%s is no directive of a dkms.conf (nearest: %s)", name, near)
	}
	return fmt.Errorf("%s is no directive of a dkms.conf", name)
}

// direct sets directives as bash's export does, of an array the element 0. DKMS leaves the variables in them to the shell that
// runs MAKE.
func (r *reply) direct(directives []string, vars map[string]string) {
	var pairs []string
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(vars))) { // $module_version before $module
		pairs = append(pairs, "${"+name+"}", vars[name], "$"+name, vars[name])
	}
	fill := strings.NewReplacer(pairs...)
	for _, d := range directives {
		name, value, _ := strings.Cut(d, "=")
		if r.Values[name] == nil {
			r.Values[name] = map[int]string{}
		}
		r.Values[name][0] = fill.Replace(value)
	}
}
