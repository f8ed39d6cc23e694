package dkms

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/xrash/smetrics"

	"kmodctl/internal/kernel"
)

// directives are the names that DKMS 3.4 takes from a dkms.conf, the deprecated ones last.
var directives = strings.Fields(`PACKAGE_NAME PACKAGE_VERSION POST_ADD POST_BUILD POST_INSTALL POST_REMOVE PRE_BUILD PRE_INSTALL
	BUILD_DEPENDS BUILD_DEPENDS_REBUILD BUILD_EXCLUSIVE_ARCH BUILD_EXCLUSIVE_CONFIG BUILD_EXCLUSIVE_KERNEL
	BUILD_EXCLUSIVE_KERNEL_MIN BUILD_EXCLUSIVE_KERNEL_MAX MAKE MAKE_MATCH PATCH PATCH_MATCH BUILT_MODULE_NAME
	BUILT_MODULE_LOCATION DEST_MODULE_NAME DEST_MODULE_LOCATION STRIP AUTOINSTALL NO_WEAK_MODULES
	OBSOLETE_BY
	CLEAN REMAKE_INITRD MODULES_CONF MODULES_CONF_OBSOLETES MODULES_CONF_ALIAS_TYPE MODULES_CONF_OBSOLETE_ONLY`)

var deprecated = directives[slices.Index(directives, "CLEAN"):]

// reader turns the variables of one evaluation into a Conf.
type reader struct {
	*reply
	conf Conf
	file string // the dkms.conf
	k    kernel.Release
	err  error // the first fault
}

func newConf(file string, r *reply, k kernel.Release) (Conf, error) {
	c := &reader{reply: r, file: file, k: k}
	c.conf = Conf{
		Name: r.Values.first("PACKAGE_NAME"), Version: r.Values.first("PACKAGE_VERSION"),
		PreBuild: r.Values.first("PRE_BUILD"), PostBuild: r.Values.first("POST_BUILD"), PostAdd: r.Values.first("POST_ADD"),
		PreInstall: r.Values.first("PRE_INSTALL"), PostInstall: r.Values.first("POST_INSTALL"), PostRemove: r.Values.first("POST_REMOVE"),
		Depends: c.list("BUILD_DEPENDS"),
	}
	c.conf.AutoInstall, c.conf.DependsRebuild, c.conf.NoWeakModules = c.yes("AUTOINSTALL"), c.yes("BUILD_DEPENDS_REBUILD"), c.yes("NO_WEAK_MODULES")
	c.identity()
	c.modules()
	c.make()
	c.patches()
	c.exclude()
	c.warn()
	return c.conf, c.err
}

func (c *reader) fail(name, format string, args ...any) {
	if c.err == nil {
		at, ok := c.Set[name]
		if !ok {
			at.File = c.file
		}
		c.err = &Error{at.File, at.Line, fmt.Sprintf(format, args...)}
	}
}

// list is the elements of an array, blanks inside of them splitting too, as DKMS loops over them.
func (c *reader) list(name string) (list []string) {
	for i := range c.Values.max(name) + 1 {
		list = append(list, strings.Fields(c.Values[name][i])...)
	}
	return list
}

// yes is a directive that is yes or no. DKMS 3.0 took any word for yes, 3.4 refuses others.
func (c *reader) yes(name string) bool {
	switch value := c.Values.first(name); strings.ToLower(value) {
	case "yes":
		return true
	case "no", "":
		return false
	default:
		c.conf.Warnings = append(c.conf.Warnings, fmt.Sprintf("%s is %q, taken for yes: write yes or no", name, value))
		return true
	}
}

// identity checks the two values that become parts of paths.
func (c *reader) identity() {
	for _, d := range [][2]string{{"PACKAGE_NAME", c.conf.Name}, {"PACKAGE_VERSION", c.conf.Version}} {
		switch name, value := d[0], d[1]; {
		case value == "":
			c.fail(name, "%s is not set: add %s=...", name, name)
		case strings.ContainsAny(value, "/ \t") || value[0] == '.' || value[0] == '-':
			c.fail(name, "%s is %q, which cannot be part of a path: write letters, digits and . _ + ~ -", name, value)
		}
	}
}

func (c *reader) modules() {
	n := c.Values.max("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION") + 1
	if n == 0 {
		c.conf.Warnings = append(c.conf.Warnings, "no module is named: add BUILT_MODULE_NAME and DEST_MODULE_LOCATION")
	}
	if n > maxModules {
		c.fail("BUILT_MODULE_NAME", "an index is %d: indexes begin at 0 and go up by one", n-1)
		return
	}
	built, installed := map[string]bool{}, map[string]bool{}
	for i := range n {
		m := c.module(i, n)
		if key := path.Join(m.Location, m.Name); built[key] {
			c.fail("BUILT_MODULE_NAME", "BUILT_MODULE_NAME[%d] names %s a second time: take one of them out", i, key)
		} else {
			built[key] = true
		}
		if installed[m.Dest] {
			c.fail("DEST_MODULE_NAME", "module %d is installed as %s, as one before it: give it another DEST_MODULE_NAME[%d]", i, m.Dest, i)
		}
		installed[m.Dest] = true
		c.conf.Modules = append(c.conf.Modules, m)
	}
}

const maxModules = 1000

func (c *reader) module(i, n int) Module {
	at := func(name string) string { return c.Values[name][i] }
	m := Module{Name: at("BUILT_MODULE_NAME"), Dest: at("DEST_MODULE_NAME"), Location: at("BUILT_MODULE_LOCATION")}
	if m.Name == "" && n == 1 {
		m.Name = c.conf.Name
	}
	if m.Dest == "" {
		m.Dest = m.Name
	}
	for _, d := range [][2]string{{"BUILT_MODULE_NAME", m.Name}, {"DEST_MODULE_NAME", m.Dest}} {
		switch name, value := d[0], d[1]; {
		case value == "":
			c.fail(name, "BUILT_MODULE_NAME[%d] is not set, and there are %d modules: name each of them", i, n)
		case strings.HasSuffix(value, ".o") || strings.HasSuffix(value, ".ko"):
			c.fail(name, "%s[%d] is %q: the name goes without .ko", name, i, value)
		case strings.ContainsAny(value, "/ \t"):
			c.fail(name, "%s[%d] is %q: the folder goes into BUILT_MODULE_LOCATION", name, i, value)
		}
	}
	if m.Location != "" {
		if m.Location = path.Clean(m.Location); !filepath.IsLocal(m.Location) {
			c.fail("BUILT_MODULE_LOCATION", "BUILT_MODULE_LOCATION[%d] is %q, outside the source: write a folder of the source", i, m.Location)
		}
		if m.Location == "." {
			m.Location = ""
		}
	}
	m.DestLocation = at("DEST_MODULE_LOCATION")
	switch rest := strings.TrimLeft(m.DestLocation, "/"); {
	case m.DestLocation == "":
		c.fail("DEST_MODULE_LOCATION", "DEST_MODULE_LOCATION[%d] is not set: add one, for instance /updates", i)
	case rest == m.DestLocation, !strings.HasPrefix(rest, "kernel") && !strings.HasPrefix(rest, "updates") && !strings.HasPrefix(rest, "extra"), !filepath.IsLocal(rest):
		c.fail("DEST_MODULE_LOCATION", "DEST_MODULE_LOCATION[%d] is %q: it begins with /kernel, /updates or /extra", i, m.DestLocation)
	}
	m.Strip = c.strip(i)
	return m
}

// strip is STRIP[i], for which STRIP[0] stands in.
func (c *reader) strip(i int) bool {
	value := c.Values["STRIP"][i]
	if value == "" {
		value = c.Values.first("STRIP")
	}
	return !strings.HasPrefix(strings.ToLower(value), "n")
}

// match reports whether a directive's expression matches; "" is no expression.
func (c *reader) match(name string, i int, subject string) bool {
	expr := c.Values[name][i]
	re, err := regexp.CompilePOSIX(expr)
	if err != nil {
		c.fail(name, "%s[%d] is %q: %v", name, i, expr, err)
		return false
	}
	return re.MatchString(subject)
}

// make takes the last MAKE whose MAKE_MATCH matches, else MAKE[0] if it has none.
func (c *reader) make() {
	makes := c.Values["MAKE"]
	if c.Values["MAKE_MATCH"][0] == "" {
		c.conf.Make = makes[0]
	}
	for i := range c.Values.max("MAKE") + 1 {
		if makes[i] != "" && c.Values["MAKE_MATCH"][i] != "" && c.match("MAKE_MATCH", i, c.k.Name) {
			c.conf.Make = makes[i]
		}
	}
	if c.conf.Make != "" && c.has("CC_IS_CLANG") {
		c.conf.Make += " LLVM=1"
	}
}

// has reports whether the kernel's configuration, where there is one, sets a name.
func (c *reader) has(name string) bool {
	if c.k.Tree == nil {
		return false
	}
	has, err := c.k.Tree.Config.Has(name)
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("read the configuration of %s: %w", c.k.Name, err)
	}
	return has
}

func (c *reader) patches() {
	for i := range c.Values.max("PATCH") + 1 {
		file := c.Values["PATCH"][i]
		if file == "" || c.Values["PATCH_MATCH"][i] != "" && !c.match("PATCH_MATCH", i, c.k.Name) {
			continue
		}
		if !filepath.IsLocal(file) {
			c.fail("PATCH", "PATCH[%d] is %q: write a file of the folder patches", i, file)
		}
		c.conf.Patches = append(c.conf.Patches, file)
	}
}

// exclude decides BUILD_EXCLUSIVE_*. One without an index is for all modules. So is one that has only index 0: it
// was the only spelling before DKMS 3.3. Where there are others, 0 is the first module's; to DKMS 3.4 it is still everybody's.
func (c *reader) exclude() {
	if by := c.Values.first("OBSOLETE_BY"); by != "" && len(c.Values["BUILD_EXCLUSIVE_KERNEL_MAX"]) == 0 {
		c.Values["BUILD_EXCLUSIVE_KERNEL_MAX"] = map[int]string{0: by}
		c.conf.Warnings = append(c.conf.Warnings, "OBSOLETE_BY is deprecated: write BUILD_EXCLUSIVE_KERNEL_MAX")
	}
	left := len(c.conf.Modules)
	c.conf.Excluded = c.excluded(0, func(name string) bool { return c.Bare[name] || c.Values.max(name) == 0 })
	for i := range c.conf.Modules {
		m := &c.conf.Modules[i]
		if m.Excluded = c.excluded(i, func(name string) bool { return c.Values.max(name) > 0 }); m.Excluded != "" {
			left--
		}
	}
	if left == 0 && len(c.conf.Modules) > 0 && c.conf.Excluded == "" {
		c.conf.Excluded = c.conf.Modules[0].Excluded
	}
}

// excluded says which of the BUILD_EXCLUSIVE_* that heed takes keeps module i back, or "".
func (c *reader) excluded(i int, heed func(name string) bool) string {
	at := func(name string) string {
		if name = "BUILD_EXCLUSIVE_" + name; heed(name) {
			return c.Values[name][i]
		}
		return ""
	}
	release := c.k.Name
	switch {
	case at("KERNEL") != "" && !c.match("BUILD_EXCLUSIVE_KERNEL", i, release):
		return fmt.Sprintf("BUILD_EXCLUSIVE_KERNEL is %q, and the kernel is %s", at("KERNEL"), release)
	case at("KERNEL_MIN") != "" && comparable(release) < comparable(at("KERNEL_MIN")):
		return fmt.Sprintf("BUILD_EXCLUSIVE_KERNEL_MIN is %s, and the kernel is %s", at("KERNEL_MIN"), release)
	case at("KERNEL_MAX") != "" && comparable(release) > comparable(at("KERNEL_MAX")):
		return fmt.Sprintf("BUILD_EXCLUSIVE_KERNEL_MAX is %s, and the kernel is %s", at("KERNEL_MAX"), release)
	case at("ARCH") != "" && !c.match("BUILD_EXCLUSIVE_ARCH", i, c.k.Arch):
		return fmt.Sprintf("BUILD_EXCLUSIVE_ARCH is %q, and the architecture is %s", at("ARCH"), c.k.Arch)
	}
	if c.k.Tree == nil {
		return ""
	}
	for _, expr := range strings.Fields(at("CONFIG")) {
		option, not := strings.CutPrefix(expr, "!")
		name, known := strings.CutPrefix(option, "CONFIG_")
		if set := known && c.has(name); set == not {
			return fmt.Sprintf("BUILD_EXCLUSIVE_CONFIG wants %s", expr)
		}
	}
	return ""
}

var numbers = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9]+`) })

// comparable pads the numbers of a version with zeros to three digits, so that versions compare as text: DKMS's way,
// which knows no suffixes: 6.1 is older than 6.1.0.
func comparable(version string) string {
	return numbers().ReplaceAllStringFunc(strings.ReplaceAll(version, " ", ""), func(n string) string {
		return strings.Repeat("0", max(0, 3-len(n))) + n
	})
}

func (c *reader) warn() {
	for _, name := range deprecated {
		if len(c.Values[name]) > 0 && !(name == "CLEAN" && path.Base(c.Values.first(name)) == "true") {
			c.conf.Warnings = append(c.conf.Warnings, name+" has no effect any more: take it out")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Set)) {
		if near := misspelt(name); near != "" {
			c.conf.Warnings = append(c.conf.Warnings, fmt.Sprintf("%s in line %d is no directive (nearest: %s)", name, c.Set[name].Line, near))
		}
	}
	for line := range strings.Lines(c.Stderr) {
		c.conf.Warnings = append(c.conf.Warnings, "it says: "+strings.TrimSpace(line))
	}
}

// misspelt is the directive that a variable's name is nearly, or "".
func misspelt(name string) string {
	if slices.Contains(directives, name) {
		return ""
	}
	i := slices.IndexFunc(directives, func(known string) bool { return smetrics.WagnerFischer(name, known, 1, 1, 1) <= len(known)/8 })
	if i < 0 {
		return ""
	}
	return directives[i]
}
