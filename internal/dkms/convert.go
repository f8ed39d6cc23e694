package dkms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"kmodctl/build"
	"kmodctl/internal/kernel"
)

// Convert returns the kmod.toml that says what a source's dkms.conf says for a kernel, with a comment for
// each thing that a kmod.toml cannot say or kmodctl does by itself. What the conf makes of others, which may
// be other kernels, is compared.
func Convert(ctx context.Context, s Source, k kernel.Release, others []kernel.Release) ([]byte, error) {
	conf, values, err := evaluate(ctx, s, k)
	if err != nil {
		return nil, err
	}
	c := &converter{conf: conf, values: values, k: k}
	c.comment("From the dkms.conf of %s %s, as it is for kernel %s.", conf.Name, conf.Version, k.Name)
	for _, other := range others {
		theirs, _, err := evaluate(ctx, s, other)
		if err != nil || c.recipe(theirs, other) != c.recipe(conf, k) {
			c.comment("For %s it says something else: kmodctl convert -k %[1]s", other.Name)
		}
	}
	fmt.Fprintf(&c.out, "name = %s\nversion = %s\n", quote(conf.Name), quote(conf.Version))
	c.modules()
	c.section("kernel", c.kernels)
	c.section("build", c.build)
	c.section("", c.rest)
	text := c.out.String()
	if _, err := build.ParseManifest(build.ManifestFile, []byte(text)); err != nil {
		return nil, fmt.Errorf("%s has no kmod.toml that says the same: %w", conf.Name, err)
	}
	return []byte(text), nil
}

// converter writes one kmod.toml.
type converter struct {
	conf   Conf
	values values
	k      kernel.Release
	out    strings.Builder
}

// comment adds a comment, of one line whatever args hold.
func (c *converter) comment(format string, args ...any) {
	fmt.Fprintf(&c.out, "# %s\n", strings.Join(strings.FieldsFunc(fmt.Sprintf(format, args...), isControl), " "))
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// quote is a string in TOML, whose escapes are JSON's.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(s) // of a string it cannot fail
	return strings.TrimSuffix(strings.ReplaceAll(b.String(), "\x7f", `\u007f`), "\n")
}

func quoteAll(words []string) string {
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = quote(w)
	}
	return "[" + strings.Join(list, ", ") + "]"
}

// general has the placeholders of a kmod.toml in place of what is one kernel's.
func (c *converter) general(text string) string { return general(text, c.conf, c.k) }

func general(text string, conf Conf, k kernel.Release) string {
	tree := "/lib/modules/" + k.Name + "/build"
	pairs := []string{tree + "/", "{build_tree}/", tree, "{build_tree}"}
	for _, place := range []string{"/var/lib/dkms/" + conf.Name + "/" + conf.Version + "/build", "/usr/src/" + conf.Name + "-" + conf.Version} {
		pairs = append(pairs, place, "{source}")
	}
	return strings.NewReplacer(append(pairs, k.Name, "{release}")...).Replace(text)
}

// recipe is what a conf says of building, free of the kernel that it was said for.
func (c *converter) recipe(conf Conf, k kernel.Release) string {
	conf.Warnings, conf.Excluded = nil, ""
	conf.Modules = slices.Clone(conf.Modules)
	for i := range conf.Modules {
		conf.Modules[i].Excluded = ""
	}
	text, _ := json.Marshal(conf) // plain data
	return general(string(text), conf, k)
}

// section writes a table, after a blank line, and without its name when nothing but comments is in it.
func (c *converter) section(name string, write func()) {
	before := c.out.String()
	c.out.Reset()
	write()
	keys := c.out.String()
	c.out.Reset()
	c.out.WriteString(before)
	if keys == "" {
		return
	}
	c.out.WriteByte('\n')
	if slices.ContainsFunc(strings.Split(keys, "\n"), func(line string) bool { return line != "" && line[0] != '#' }) {
		fmt.Fprintf(&c.out, "[%s]\n", name)
	}
	c.out.WriteString(keys)
}

func (c *converter) modules() {
	for _, m := range c.conf.Modules {
		c.out.WriteByte('\n')
		if m.Dest != m.Name {
			c.comment("DEST_MODULE_NAME is %s: kmodctl installs a module by the name that it is built by.", m.Dest)
		}
		if !m.Strip {
			c.comment("STRIP is no: kmodctl takes debug information off each module, and symbols stay.")
		}
		if m.Excluded != "" {
			c.comment("Not for each kernel: %s. A kmod.toml has conditions for all of its modules.", m.Excluded)
		}
		fmt.Fprintf(&c.out, "[[module]]\nname = %s\n", quote(m.Name))
		if m.Location != "" {
			fmt.Fprintf(&c.out, "dir = %s\n", quote(m.Location))
		}
	}
}

// machines are names that BUILD_EXCLUSIVE_ARCH may match.
var machines = []string{"x86_64", "i386", "i486", "i586", "i686", "aarch64", "armv6l", "armv7l", "ppc64le", "ppc64", "ppc", "s390x", "riscv64", "loongarch64", "mips64", "mips"}

func (c *converter) kernels() {
	each := func(name string) (value string) {
		name = "BUILD_EXCLUSIVE_" + name
		if c.values.max(name) > 0 {
			c.comment("%s is given for each module: a kmod.toml has conditions for all of them.", name)
			return ""
		}
		return c.values.first(name)
	}
	if expr := each("KERNEL"); expr != "" {
		c.comment("BUILD_EXCLUSIVE_KERNEL is the regular expression %q: say it by release, as a comparison.", expr)
	}
	var release []string
	if least := each("KERNEL_MIN"); least != "" {
		release = append(release, ">="+least)
	}
	most := each("KERNEL_MAX")
	if by := c.values.first("OBSOLETE_BY"); most == "" {
		most = by
	}
	if most != "" {
		release = append(release, "<"+most) // to DKMS 6.8.0 is newer than 6.8
	}
	if list := strings.Join(release, ", "); list != "" {
		if _, err := kernel.ParseConstraint(list); err != nil {
			c.comment("%s: %v", list, err)
		} else {
			fmt.Fprintf(&c.out, "release = %s\n", quote(list))
		}
	}
	var config []string
	for _, expr := range strings.Fields(each("CONFIG")) {
		config = append(config, strings.Replace(expr, "CONFIG_", "", 1))
	}
	if len(config) > 0 {
		fmt.Fprintf(&c.out, "config = %s\n", quoteAll(config))
	}
	if expr := each("ARCH"); expr != "" {
		c.arch(expr)
	}
}

func (c *converter) arch(expr string) {
	r := &reader{reply: &reply{Values: c.values}}
	var arch []string
	for _, m := range machines {
		if r.match("BUILD_EXCLUSIVE_ARCH", 0, m) {
			arch = append(arch, m)
		}
	}
	if len(arch) == 0 {
		c.comment("BUILD_EXCLUSIVE_ARCH is %q, which no architecture matches: what does it stand for?", expr)
		return
	}
	fmt.Fprintf(&c.out, "arch = %s\n", quoteAll(arch))
}

func (c *converter) build() {
	if len(c.conf.Depends) > 0 {
		fmt.Fprintf(&c.out, "needs = %s\n", quoteAll(c.conf.Depends))
	}
	var patches []string
	for i := range c.values.max("PATCH") + 1 {
		file, expr := c.values["PATCH"][i], c.values["PATCH_MATCH"][i]
		switch {
		case file == "":
		case expr != "":
			c.comment("For kernels that match the regular expression %q: add { file = %s, release = \"...\" } to patches.", expr, quote("patches/"+file))
		default:
			patches = append(patches, "{ file = "+quote("patches/"+file)+" }")
		}
	}
	if len(patches) > 0 {
		fmt.Fprintf(&c.out, "patches = [%s]\n", strings.Join(patches, ", "))
	}
	if c.conf.PreBuild != "" {
		words := strings.Fields(c.general(c.conf.PreBuild))
		if !strings.Contains(words[0], "/") {
			words[0] = "./" + words[0] // it is a file of the source
		}
		fmt.Fprintf(&c.out, "prepare = [%s]\n", quoteAll(words))
	}
	c.make()
}

// make says what is left of MAKE beside kbuild.
func (c *converter) make() {
	if c.conf.Make == "" {
		return
	}
	command := c.general(c.conf.Make)
	targets, rest, ok := kbuild(command)
	switch {
	case !ok:
		c.comment("MAKE is: %s", command)
		c.comment("kmodctl runs kbuild itself, make -C {build_tree} M={source}. What else the command does goes into prepare,")
		c.comment("for instance prepare = [[\"make\", \"version.h\"]].")
	case len(rest) > 0:
		c.comment("MAKE also sets %s for kbuild: write it into the Kbuild file.", strings.Join(rest, " "))
	}
	if ok && len(targets) > 0 && !slices.Equal(targets, []string{"modules"}) {
		fmt.Fprintf(&c.out, "targets = %s\n", quoteAll(targets))
	}
}

// kbuild takes a command apart that runs kbuild over the whole source and does nothing else: its targets
// and the other variables that it sets.
func kbuild(command string) (targets, rest []string, ok bool) {
	program, err := syntax.NewParser().Parse(strings.NewReader(command), "")
	if err != nil || len(program.Stmts) != 1 {
		return nil, nil, false
	}
	call, isCall := program.Stmts[0].Cmd.(*syntax.CallExpr)
	if !isCall || len(call.Assigns) > 0 || len(program.Stmts[0].Redirs) > 0 {
		return nil, nil, false
	}
	var words []string
	for _, w := range call.Args {
		if w.Lit() == "" {
			var b strings.Builder
			syntax.NewPrinter().Print(&b, w)
			words = append(words, b.String())
			continue
		}
		words = append(words, w.Lit())
	}
	if words[0] != "make" {
		return nil, nil, false
	}
	tree, source := false, false
	for i := 1; i < len(words); i++ {
		switch w := strings.TrimSuffix(words[i], "/"); {
		case w == "-C" && i+1 < len(words):
			i++
			tree = strings.TrimSuffix(words[i], "/") == "{build_tree}"
		case w == "M={source}" || w == "SUBDIRS={source}":
			source = true
		case strings.HasPrefix(w, "-j") || w == "V=1" || strings.HasPrefix(w, "KERNELRELEASE="):
		case strings.HasPrefix(w, "-") || strings.HasPrefix(w, "M="):
			return nil, nil, false
		case strings.Contains(w, "="):
			rest = append(rest, words[i])
		default:
			targets = append(targets, words[i])
		}
	}
	return targets, rest, tree && source
}

func (c *converter) rest() {
	for _, s := range []struct{ name, value, instead string }{
		{"POST_BUILD", c.conf.PostBuild, "nothing runs between the build and the install"},
		{"POST_ADD", c.conf.PostAdd, "a package's own postinst can"},
		{"PRE_INSTALL", c.conf.PreInstall, "a package's own postinst can"},
		{"POST_INSTALL", c.conf.PostInstall, "a package's own postinst can"},
		{"POST_REMOVE", c.conf.PostRemove, "a package's own postrm can"},
	} {
		if s.value != "" {
			c.comment("%s is %q: kmodctl runs no script of a source as root; %s.", s.name, s.value, s.instead)
		}
	}
	if !c.conf.AutoInstall {
		c.comment("AUTOINSTALL is not set: kmodctl builds each package that it keeps for new kernels.")
	}
	for _, w := range c.conf.Warnings {
		c.comment("%s", w)
	}
}
