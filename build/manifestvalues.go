package build

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"kmodctl/internal/kernel"
)

var (
	// A package's name and version become file names, and NAME@VERSION on the command line.
	namePattern   = anyOf(`^[A-Za-z0-9][A-Za-z0-9._+~-]*$`)
	modulePattern = anyOf(`^[A-Za-z0-9_-]+$`)
	paramPattern  = anyOf(`^[A-Za-z0-9_.-]+$`)
	targetPattern = anyOf(`^[A-Za-z0-9_][A-Za-z0-9_./-]*$`)
	configPattern = anyOf(`^!?[A-Za-z0-9_]+$`)
	archPattern   = anyOf(`^[a-z0-9_]+$`)
	placeholder   = anyOf(`\{[A-Za-z_]+\}`)
)

const (
	nameLen   = 64 // of a package's name or version; our own limit
	moduleLen = 55 // MODULE_NAME_LEN - 1 on 64 bit, include/linux/moduleparam.h
)

// placeholders are the words that a prepare step may hold in braces; Job.expand
// gives them their values.
var placeholders = []string{"{build_tree}", "{source}", "{release}", "{arch}", "{cc}", "{jobs}"}

// validate finds the first value that cannot be.
func validate(m *Manifest, keys *manifestKeys) *ManifestError {
	for _, v := range []struct{ key, value, example string }{
		{"name", m.Name, "hello"}, {"version", m.Version, "1.0.0"},
	} {
		if _, ok := keys.at[v.key]; !ok {
			return keys.fault(0, v.key, fmt.Sprintf("%s is missing, for instance %s = %q", v.key, v.key, v.example))
		}
		if reason := badName(v.value); reason != "" {
			return keys.bad(v.key, reason)
		}
	}
	if bad := validateModules(m, keys); bad != nil {
		return bad
	}
	if bad := validateKernels(m.Kernel, keys); bad != nil {
		return bad
	}
	if bad := validateFiles(m, keys); bad != nil {
		return bad
	}
	if bad := validateNeeds(m, keys); bad != nil {
		return bad
	}
	return validateRecipe(m.Build, keys)
}

// validateFiles: each file lies in the source, has the suffix without which nobody reads it, and a place of its own.
func validateFiles(m *Manifest, keys *manifestKeys) *ManifestError {
	seen := map[string]bool{}
	for _, list := range []struct {
		key, suffix string
		files       []string
	}{
		{"firmware", "", m.Files.Firmware}, {"udev", ".rules", m.Files.Udev}, {"modules-load", ".conf", m.Files.ModulesLoad}, {"modprobe", ".conf", m.Files.Modprobe},
	} {
		for i, f := range list.files {
			key := fmt.Sprintf("files.%s[%d]", list.key, i)
			if reason := badPath(f); reason != "" {
				return keys.bad(key, reason)
			}
			if !strings.HasSuffix(f, list.suffix) {
				return keys.bad(key, fmt.Sprintf("%q does not end in %s: nobody would read it", f, list.suffix))
			}
			if name := list.key + " " + path.Base(f); list.key != "firmware" && seen[name] {
				return keys.bad(key, fmt.Sprintf("%q is there twice", path.Base(f)))
			} else {
				seen[name] = true
			}
		}
	}
	return nil
}

func badName(s string) string {
	switch {
	case s == "":
		return "is empty"
	case strings.Contains(s, "/"):
		return fmt.Sprintf("%q holds a slash", s)
	case len(s) > nameLen:
		return fmt.Sprintf("is longer than %d characters", nameLen)
	case !namePattern().MatchString(s):
		return fmt.Sprintf("%q must start with a letter or digit and hold only these and . _ + ~ -", s)
	}
	return ""
}

func validateModules(m *Manifest, keys *manifestKeys) *ManifestError {
	if _, given := keys.at["module"]; !given && badModule(m.Name) != "" {
		return keys.bad("name", fmt.Sprintf("%q is not the name of a kernel module: list the modules under [[module]]", m.Name))
	} else if given && len(m.Modules) == 0 {
		return keys.bad("module", "is empty")
	}
	seen := map[string]bool{}
	for i, mod := range m.Modules {
		row := fmt.Sprintf("module[%d]", i)
		if _, ok := keys.at[row+".name"]; !ok {
			return keys.bad(row, "has no name")
		}
		if reason := badModule(mod.Name); reason != "" {
			return keys.bad(row+".name", reason)
		}
		if seen[moduleName(mod.Name)] {
			return keys.bad(row+".name", fmt.Sprintf("%q is listed twice", mod.Name))
		}
		seen[moduleName(mod.Name)] = true
		if _, ok := keys.at[row+".dir"]; ok {
			if reason := badPath(mod.Dir); reason != "" {
				return keys.bad(row+".dir", reason)
			}
		}
		for n, p := range mod.Params {
			if reason := badParam(p); reason != "" {
				return keys.bad(fmt.Sprintf("%s.params[%d]", row, n), reason)
			}
		}
	}
	return nil
}

// badParam: a word of a line of modprobe.d(5), which the kernel must be able to read (next_arg in lib/cmdline.c).
func badParam(s string) string {
	switch name, value, _ := strings.Cut(s, "="); {
	case name == "":
		return fmt.Sprintf("%q is not of the form name=value", s)
	case !paramPattern().MatchString(name):
		return fmt.Sprintf("%q is not the name of a parameter: letters, digits, _, - and dots", name)
	case strings.ContainsAny(value, "\"\\\n\r\x00"):
		return fmt.Sprintf("%q: the value may hold no quote, backslash or line break", s)
	}
	return ""
}

func badModule(s string) string {
	switch {
	case s == "":
		return "is empty"
	case strings.Contains(s, "/"):
		return fmt.Sprintf("%q holds a slash: the folder goes into dir", s)
	case strings.HasSuffix(s, ".ko"):
		return fmt.Sprintf("%q is a file: the name goes without .ko", s)
	case len(s) > moduleLen:
		return fmt.Sprintf("is longer than %d characters", moduleLen)
	case !modulePattern().MatchString(s):
		return fmt.Sprintf("%q may hold only letters, digits, _ and -", s)
	}
	return ""
}

// badPath refuses what does not lie in the source, as written: links are
// CheckSource's work.
func badPath(s string) string {
	switch {
	case s == "":
		return "is empty"
	case strings.HasPrefix(s, "/"):
		return fmt.Sprintf("%q is an absolute path: paths are relative to the source", s)
	case slices.Contains(strings.Split(s, "/"), ".."):
		return fmt.Sprintf("%q holds .. and may lead out of the source", s)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) || path.Clean(s) != strings.TrimSuffix(s, "/"):
		return fmt.Sprintf("%q is not a plain path", s)
	}
	return ""
}

func validateKernels(k Kernels, keys *manifestKeys) *ManifestError {
	if bad := validateConstraint(k.Release, "kernel.release", keys); bad != nil {
		return bad
	}
	for i, c := range k.Config {
		key := fmt.Sprintf("kernel.config[%d]", i)
		if strings.HasPrefix(strings.TrimPrefix(c, "!"), "CONFIG_") {
			return keys.bad(key, fmt.Sprintf("%q goes without CONFIG_", c))
		}
		if !configPattern().MatchString(c) {
			return keys.bad(key, fmt.Sprintf(`%q is neither "OPTION" nor "!OPTION"`, c))
		}
	}
	for i, a := range k.Arch {
		key := fmt.Sprintf("kernel.arch[%d]", i)
		// Debian's and the kernel's own names would match no uname -m, silently.
		if right, ok := map[string]string{"amd64": "x86_64", "x86": "x86_64", "arm64": "aarch64"}[a]; ok {
			return keys.bad(key, fmt.Sprintf("%q is %q in uname -m", a, right))
		}
		if !archPattern().MatchString(a) {
			return keys.bad(key, fmt.Sprintf("%q is not a name of uname -m", a))
		}
	}
	return nil
}

func validateConstraint(s, key string, keys *manifestKeys) *ManifestError {
	if _, given := keys.at[key]; !given {
		return nil
	}
	if _, err := kernel.ParseConstraint(s); err != nil {
		return keys.bad(key, "cannot be read: "+err.Error())
	}
	return nil
}

func validateNeeds(m *Manifest, keys *manifestKeys) *ManifestError {
	for i, name := range m.Build.Needs {
		key := fmt.Sprintf("build.needs[%d]", i)
		switch reason := badName(name); {
		case reason != "":
			return keys.bad(key, reason)
		case name == m.Name:
			return keys.bad(key, "is the package itself")
		case slices.Index(m.Build.Needs, name) < i:
			return keys.bad(key, fmt.Sprintf("%q was named before", name))
		}
	}
	return nil
}

func validateRecipe(r Recipe, keys *manifestKeys) *ManifestError {
	if _, given := keys.at["build.targets"]; given && len(r.Targets) == 0 {
		return keys.bad("build.targets", "is empty")
	}
	for i, t := range r.Targets {
		if !targetPattern().MatchString(t) || slices.Contains(strings.Split(t, "/"), "..") {
			return keys.bad(fmt.Sprintf("build.targets[%d]", i), fmt.Sprintf("%q is not a target of make", t))
		}
	}
	for i, argv := range r.Prepare {
		key := fmt.Sprintf("build.prepare[%d]", i)
		if len(argv) == 0 || argv[0] == "" {
			return keys.bad(key, "names no program")
		}
		for n, arg := range argv {
			word := fmt.Sprintf("%s[%d]", key, n)
			if strings.ContainsRune(arg, 0) {
				return keys.bad(word, "holds a NUL byte")
			}
			for _, p := range placeholder().FindAllString(arg, -1) {
				if !slices.Contains(placeholders, p) {
					return keys.bad(word, fmt.Sprintf("holds the unknown placeholder %s: known are %s", p, strings.Join(placeholders, " ")))
				}
			}
		}
	}
	for i, p := range r.Patches {
		key := fmt.Sprintf("build.patches[%d]", i)
		if reason := badPath(p.File); reason != "" {
			return keys.bad(key+".file", reason)
		}
		if bad := validateConstraint(p.Release, key+".release", keys); bad != nil {
			return bad
		}
	}
	return nil
}

// moduleName is the kernel's form of a module's name: kbuild makes _ of every -
// in KBUILD_MODNAME (scripts/Makefile.lib, name-fix).
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }
