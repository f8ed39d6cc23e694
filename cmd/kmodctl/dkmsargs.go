package main

import (
	"fmt"
	"slices"
	"strings"

	"kmodctl/internal/dkms"
)

// dkmsCall is a command line of DKMS 3.4, dkms(8), as it was written.
type dkmsCall struct {
	action          string // "" for none
	module, version string
	kernels, arches []string // of -k and -a; pairs once targets has seen them
	tree            string   // a folder that holds a dkms.conf
	archive         string
	conf            string // of -c
	template        string // of match: the kernel to be like
	config          string // the kernel's auto.conf
	kernelSource    string
	directives      []string // "NAME=value"
	dkmsTree        string
	sourceTree      string
	installTree     string
	jobs            string

	all, force, forceVersion, binariesOnly, sourceOnly, noDepmod, modprobe, symlinks, rpmSafe bool
	quiet, verbose, dryRun, help, showVersion                                                 bool

	notes []string // words that were passed over, and why
}

// dkmsError is an error with the exit code that DKMS has for its cause.
type dkmsError struct {
	code int
	err  error
}

func (d dkmsError) Error() string { return d.err.Error() }
func (d dkmsError) Unwrap() error { return d.err }

func dkmsFail(code int, format string, args ...any) error {
	return dkmsError{code, fmt.Errorf(format, args...)}
}

// dkmsActions are the actions of DKMS 3.4, as its usage lists them.
var dkmsActions = []string{"add", "remove", "build", "unbuild", "install", "uninstall", "match", "autoinstall", "mktarball", "ldtarball",
	"status", "generate_mok", "kernel_preinst", "kernel_postinst", "kernel_prerm"}

type dkmsValue struct {
	long, short string // "" for none
	set         func(*dkmsCall, string)
}

func (o dkmsValue) is(word string) bool {
	return word == o.short || o.long != "" && strings.HasPrefix(word, o.long)
}

// dkmsValues are the options that take a value, `--name VALUE` or `--name=VALUE`. A long one is known by how it
// begins, as DKMS does it: --kernelversion is --kernelver. The first that fits wins.
var dkmsValues = []dkmsValue{
	{"--module", "-m", (*dkmsCall).setModule},
	{"", "-v", func(c *dkmsCall, v string) { c.version = v }},
	{"--kernelver", "-k", (*dkmsCall).addKernel},
	{"--templatekernel", "", func(c *dkmsCall, v string) { c.template = v }},
	{"", "-c", func(c *dkmsCall, v string) { c.conf = v }},
	{"--dkmstree", "", func(c *dkmsCall, v string) { c.dkmsTree = v }},
	{"--sourcetree", "", func(c *dkmsCall, v string) { c.sourceTree = v }},
	{"--installtree", "", func(c *dkmsCall, v string) { c.installTree = v }},
	{"--config", "", func(c *dkmsCall, v string) { c.config = v }},
	{"--archive", "", func(c *dkmsCall, v string) { c.archive = v }},
	{"--arch", "-a", func(c *dkmsCall, v string) { c.arches = append(c.arches, v) }},
	{"--kernelsourcedir", "", func(c *dkmsCall, v string) { c.kernelSource = v }},
	{"--directive", "", func(c *dkmsCall, v string) { c.directives = append(c.directives, v) }},
	{"", "-j", func(c *dkmsCall, v string) { c.jobs = v }},
}

// dkmsFlags are the options without a value.
var dkmsFlags = map[string]func(*dkmsCall) *bool{
	"--quiet": func(c *dkmsCall) *bool { return &c.quiet }, "-q": func(c *dkmsCall) *bool { return &c.quiet },
	"--version": func(c *dkmsCall) *bool { return &c.showVersion }, "-V": func(c *dkmsCall) *bool { return &c.showVersion },
	"--help": func(c *dkmsCall) *bool { return &c.help }, "-h": func(c *dkmsCall) *bool { return &c.help },
	"--verbose": func(c *dkmsCall) *bool { return &c.verbose }, "--debug": func(c *dkmsCall) *bool { return &c.verbose },
	"--all": func(c *dkmsCall) *bool { return &c.all }, "--force": func(c *dkmsCall) *bool { return &c.force },
	"--force-version-override": func(c *dkmsCall) *bool { return &c.forceVersion },
	"--binaries-only":          func(c *dkmsCall) *bool { return &c.binariesOnly },
	"--source-only":            func(c *dkmsCall) *bool { return &c.sourceOnly },
	"--no-depmod":              func(c *dkmsCall) *bool { return &c.noDepmod },
	"--modprobe-on-install":    func(c *dkmsCall) *bool { return &c.modprobe },
	"--symlink-modules":        func(c *dkmsCall) *bool { return &c.symlinks },
	"--rpm_safe_upgrade":       func(c *dkmsCall) *bool { return &c.rpmSafe },
	"--dry-run":                func(c *dkmsCall) *bool { return &c.dryRun }, // ours
}

// What an argument that is neither action nor option is, by the file of its name.
const (
	wordName   = iota // no such file: the name of a module
	wordTree          // a folder with a dkms.conf
	wordConf          // a dkms.conf
	wordOfFile        // another file, an archive
)

// parseDKMS reads the words behind the command's name; look tells what file a word names.
// Errors are of type dkmsError.
func parseDKMS(words []string, look func(word string) int) (c dkmsCall, err error) {
	for i := 0; i < len(words); i++ {
		word := words[i]
		if flag, ok := dkmsFlags[word]; ok {
			*flag(&c) = true
			if c.help || c.showVersion { // DKMS reads no further
				return c, nil
			}
			continue
		}
		if known := slices.IndexFunc(dkmsValues, func(o dkmsValue) bool { return o.is(word) }); known >= 0 {
			_, value, attached := strings.Cut(word, "=")
			if !attached && i+1 < len(words) {
				i++
				value = words[i]
			}
			value, _, _ = strings.Cut(value, "\n")
			dkmsValues[known].set(&c, strings.TrimSpace(value))
			continue
		}
		switch {
		case word == "--no-initrd", word == "--no-clean-kernel", word == "--no-prepare-kernel":
			c.notes = append(c.notes, word+" is of a DKMS of old and means nothing")
		case strings.HasPrefix(word, "-"):
			return c, dkmsFail(2, "unknown option %s%s", word, nearestOf(word, dkmsOptionNames()))
		case slices.Contains(dkmsActions, word):
			if c.action != "" {
				return c, dkmsFail(4, "two actions: %s and %s", c.action, word)
			}
			c.action = word
		default:
			c.take(word, look(word))
		}
	}
	return c, nil
}

// take is an argument that is neither action nor option.
func (c *dkmsCall) take(word string, is int) {
	switch {
	case is == wordConf:
		c.tree = strings.TrimSuffix(word, "dkms.conf") + "."
	case is == wordTree:
		c.tree = word
	case is == wordOfFile:
		c.archive = word
	case c.module == "":
		c.setModule(word)
	default:
		c.notes = append(c.notes, word+" is passed over: it is neither an action nor a file, and a module is given")
	}
}

// setModule takes MODULE or MODULE/VERSION.
func (c *dkmsCall) setModule(v string) {
	module, version, both := strings.Cut(v, "/")
	if c.module = module; both {
		c.version = version
	}
}

// addKernel takes KERNEL or KERNEL/ARCH.
func (c *dkmsCall) addKernel(v string) {
	release, arch, both := strings.Cut(v, "/")
	if c.kernels = append(c.kernels, release); both {
		c.arches = append(c.arches, arch)
	}
}

func dkmsOptionNames() (names []string) {
	for _, o := range dkmsValues {
		if o.long != "" {
			names = append(names, o.long)
		}
	}
	for name := range dkmsFlags {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// check finds what is wrong with a command line whatever the machine is like, in the order in which DKMS
// finds it. Errors are of type dkmsError.
func (c *dkmsCall) check() error {
	oneKernel := slices.Contains([]string{"autoinstall", "match", "kernel_preinst", "kernel_postinst", "kernel_prerm"}, c.action)
	ofKernel := strings.HasPrefix(c.action, "kernel_")
	switch {
	case c.binariesOnly && c.sourceOnly:
		return dkmsFail(8, "--binaries-only and --source-only exclude each other")
	case len(c.arches) > 1 && len(c.arches) != len(c.kernels):
		return dkmsFail(1, "%d -a for %d -k: give one of each, or one -a for all", len(c.arches), len(c.kernels))
	case len(c.kernels) > 0 && c.all:
		return dkmsFail(2, "-k and --all exclude each other")
	case len(c.arches) > 0 && c.all:
		return dkmsFail(3, "-a and --all exclude each other")
	case c.all && (oneKernel || slices.Contains([]string{"add", "build", "install"}, c.action)):
		return dkmsFail(5, "%s has no --all", c.action)
	case ofKernel && len(c.kernels) == 0:
		return dkmsFail(4, "%s wants a kernel: -k RELEASE", c.action)
	case oneKernel && len(c.kernels) > 1:
		return dkmsFail(4, "%s takes one kernel, not %d", c.action, len(c.kernels))
	case c.action != "status" && (slices.Contains(c.kernels, "") || slices.Contains(c.arches, "")):
		return dkmsFail(16, "the name of a kernel or an architecture is empty (an unset variable?)")
	}
	for _, d := range c.directives {
		if err := dkms.CheckDirective(d); err != nil {
			return dkmsError{2, err}
		}
	}
	named := c.module != "" && c.version != ""
	switch c.action {
	case "":
		if c.module != "" {
			return dkmsFail(2, "unknown action %q%s", c.module, nearestOf(c.module, dkmsActions))
		}
		return dkmsFail(2, "no action")
	case "remove", "unbuild", "uninstall", "mktarball":
		if !named {
			return dkmsFail(1, "%s wants a module and its version: dkms %[1]s MODULE/VERSION", c.action)
		}
	case "add", "build", "install":
		if !named && (c.module != "" || c.version != "" || c.tree == "" && c.archive == "") {
			return dkmsFail(1, "%s wants a module and its version, or a folder with a dkms.conf: dkms %[1]s MODULE/VERSION", c.action)
		}
	case "match":
		if c.template == "" {
			return dkmsFail(1, "match wants the kernel to be like: --templatekernel RELEASE")
		}
	case "ldtarball":
		if c.archive == "" {
			return dkmsFail(2, "ldtarball wants a file: --archive FILE")
		}
	}
	return nil
}

// dkmsTarget is a kernel and the architecture that DKMS names beside it.
type dkmsTarget struct{ release, arch string }

// targets pairs kernels and architectures; without any, it is the running kernel on this machine.
func (c *dkmsCall) targets(running, machine string) (out []dkmsTarget) {
	kernels := c.kernels
	if len(kernels) == 0 && !c.all {
		kernels = []string{running}
	}
	for i, k := range kernels {
		t := dkmsTarget{k, machine}
		switch {
		case len(c.arches) == 1:
			t.arch = c.arches[0]
		case i < len(c.arches):
			t.arch = c.arches[i]
		}
		out = append(out, t)
	}
	return out
}

const dkmsUsage = `Usage: dkms ACTION [OPTIONS] [MODULE/VERSION | FOLDER | ARCHIVE]

Actions: add remove build unbuild install uninstall match autoinstall mktarball
         ldtarball status generate_mok kernel_preinst kernel_postinst kernel_prerm
Options: -m MODULE[/VERSION] -v VERSION -k KERNEL[/ARCH] -a ARCH --all --force
         --force-version-override -c FILE --directive NAME=VALUE --config FILE
         --kernelsourcedir DIR --archive FILE --binaries-only --source-only
         --templatekernel KERNEL --no-depmod --modprobe-on-install --symlink-modules
         --rpm_safe_upgrade --dkmstree DIR --sourcetree DIR --installtree DIR
         -j N -q --verbose --dry-run -V -h

This is kmodctl, called by the name dkms: dkms(8) of DKMS 3.4 describes actions and options.
`
