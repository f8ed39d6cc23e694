package loader

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// resolve finds who exports what the files of a plan import and export.
func (c *check) resolve(steps []Step) {
	c.own, c.steps = map[string]offer{}, map[string]int{}
	for i, s := range steps {
		if s.Action != Remove {
			c.steps[s.Module] = i
		}
	}
	names, opened := map[string]bool{"module_layout": true}, false
	for i, f := range c.files {
		if f.info == nil || f.fits {
			continue
		}
		opened = true
		c.steps[f.info.Name] = i
		live, isLive := c.target.state.Find(f.info.Name)
		for name, o := range offersOf(f.info) {
			if isLive && live.BuildID != f.info.BuildID {
				o.hasCRC = false // another build is loaded, whose CRCs nobody knows
			}
			names[name] = true
			if _, twice := c.own[name]; !twice {
				c.own[name] = o
			}
		}
		if steps[i].Action == Insert {
			for _, imp := range f.info.Imports {
				names[imp.Name] = true
			}
		}
	}
	if !opened {
		return
	}
	c.offered, c.known = c.target.offers(names)
	if c.known != nil {
		return
	}
	missing := map[string]bool{}
	for name := range names {
		if _, ok := c.offer(name); !ok {
			missing[name] = true
		}
	}
	if c.target.state != nil && len(missing) > 0 && slices.ContainsFunc(c.files, c.lacks(missing)) {
		c.live = c.target.exportedLive(missing)
	}
}

// lacks tells the files that import one of names.
func (c *check) lacks(names map[string]bool) func(file) bool {
	return func(f file) bool {
		return f.info != nil && slices.ContainsFunc(f.info.Imports, func(i ko.Import) bool { return names[i.Name] && !i.Weak })
	}
}

// offer is who exports a symbol: a file of the plan rather than the module of the same name that came with the kernel.
func (c *check) offer(name string) (offer, bool) {
	table, inTable := c.offered[name]
	own, isOwn := c.own[name]
	if isOwn && !(inTable && table.by == "") {
		return own, true
	}
	return table, inTable
}

// before reports whether a module is there when a step begins: "" is the kernel.
func (c *check) before(module string, step int) bool {
	if module == "" {
		return true
	}
	if at, planned := c.steps[module]; planned && at < step {
		return true
	}
	_, live := c.target.state.Find(module)
	return live
}

// misfit is what is wrong with one import.
type misfit struct {
	cause CauseID
	errno unix.Errno
	text  string // of the first symbol of this kind
	facts string
}

// imports judges the symbols that a file needs: simplify_symbols in kernel/module/main.c. Those that fail for the same
// cause are one finding.
func (c *check) imports(info *ko.Info, step int) {
	if c.known != nil && c.target.Thorough {
		c.warn(CauseSymbolsUnchecked, "its symbols were not checked: "+c.known.Error())
	}
	var order []CauseID
	misfits := map[CauseID][]misfit{}
	for _, imp := range info.Imports {
		m := c.misfit(info, imp, step)
		if m.cause == "" {
			continue
		}
		if misfits[m.cause] == nil {
			order = append(order, m.cause)
		}
		misfits[m.cause] = append(misfits[m.cause], m)
	}
	for _, cause := range order {
		list := misfits[cause]
		text := list[0].text
		if n := len(list) - 1; n > 0 {
			text += fmt.Sprintf(" (and %d more like it)", n)
		}
		var evidence []string
		for _, m := range list {
			if m.facts != "" {
				evidence = append(evidence, m.facts)
			}
		}
		severity, errno := Refused, list[0].errno
		if errno == 0 {
			severity = Warning
		}
		c.add(severity, cause, errno, text, evidence...)
	}
}

// misfit judges one import; its cause is "" when it will be found.
func (c *check) misfit(info *ko.Info, imp ko.Import, step int) misfit {
	o, offered := c.offer(imp.Name)
	if !offered {
		if imp.Weak || c.known != nil || c.live[imp.Name] {
			return misfit{}
		}
		return misfit{CauseSymbolMissing, unix.ENOENT, fmt.Sprintf("symbol %s is exported by nothing that is loaded", imp.Name), c.whereabouts(imp.Name)}
	}
	switch {
	case !c.before(o.by, step) && !c.live[imp.Name]:
		if imp.Weak {
			return misfit{}
		}
		return misfit{CauseSymbolMissing, unix.ENOENT,
			fmt.Sprintf("symbol %s is exported by module %s, which is not loaded", imp.Name, o.by), imp.Name + " is exported by " + o.by}
	case o.gpl && !slices.Contains(gplLicences, info.License):
		if imp.Weak {
			return misfit{}
		}
		return misfit{CauseGPLOnly, unix.ENOENT, fmt.Sprintf("symbol %s is for modules under the GPL, and the file's licence is %q", imp.Name, licence(info)), imp.Name + " is EXPORT_SYMBOL_GPL"}
	case o.hasCRC && info.Modversions && !imp.HasCRC:
		m := misfit{CauseNoSymbolCRC, 0, fmt.Sprintf("the file has no CRC for symbol %s: it was built without the Module.symvers of the module that exports it", imp.Name), imp.Name}
		if c.target.debian() {
			m.errno = unix.EINVAL
		}
		return m
	case o.hasCRC && imp.HasCRC && imp.CRC != o.crc:
		return misfit{CauseSymbolCRC, unix.EINVAL, fmt.Sprintf("symbol %s has another type (CRC) here than in the build tree of the file", imp.Name),
			fmt.Sprintf("%s: CRC 0x%08x in the file, 0x%08x in %s", imp.Name, imp.CRC, o.crc, exporter(o))}
	}
	return c.namespace(info, imp.Name, o)
}

func exporter(o offer) string {
	if o.by == "" {
		return "the kernel"
	}
	return o.by
}

func licence(info *ko.Info) string {
	if info.License == "" {
		return "unspecified"
	}
	return info.License
}

// onlyFor begins a namespace that names its modules: "module:kvm,kvm-*", Linux 6.16.
const onlyFor = "module:"

// namespace judges a symbol's namespace: verify_namespace_is_imported in kernel/module/main.c.
func (c *check) namespace(info *ko.Info, symbol string, o offer) misfit {
	if o.namespace == "" {
		return misfit{}
	}
	if list, ok := strings.CutPrefix(o.namespace, onlyFor); ok {
		for name := range strings.SplitSeq(list, ",") {
			if ok, err := path.Match(ko.NormalizeName(name), info.Name); ok && err == nil {
				return misfit{}
			}
		}
		return misfit{CauseModuleNamespace, unix.EINVAL, fmt.Sprintf("symbol %s is kept for the modules %s", symbol, list), symbol + " is in namespace " + o.namespace}
	}
	if slices.Contains(info.Values("import_ns"), o.namespace) {
		return misfit{}
	}
	m := misfit{CauseNamespace, unix.EINVAL, fmt.Sprintf("symbol %s is in namespace %s, which the file does not import (MODULE_IMPORT_NS)", symbol, o.namespace),
		symbol + " is in namespace " + o.namespace}
	if c.target.option("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS") == "y" {
		m.errno = 0
	}
	return m
}

// whereabouts says what is known of a symbol that nothing exports.
func (c *check) whereabouts(symbol string) string {
	names := map[string]bool{symbol: true}
	if c.target.has(names)[symbol] {
		return symbol + " is in the kernel, but not exported to modules"
	}
	for _, a := range c.target.index.Exporters(symbol) {
		return fmt.Sprintf("%s is exported by module %s, which nothing here loads before it", symbol, a.Module)
	}
	for _, other := range c.target.others() {
		if found, err := other.Tree.SymbolsOf(names); err == nil && found[symbol].Module != "" {
			return fmt.Sprintf("%s is exported by %s of kernel %s", symbol, found[symbol].Module, other.Name)
		}
	}
	return symbol
}

// exports judges what a file offers: no symbol is exported twice (verify_exported_symbols in kernel/module/main.c).
func (c *check) exports(info *ko.Info, step int) {
	for _, e := range info.Exports {
		table, inTable := c.offered[e.Name]
		other := offer{by: info.Name}
		if own := c.own[e.Name]; own.by != info.Name {
			other = own
		} else if inTable {
			other = table
		}
		if other.by != info.Name && c.before(other.by, step) {
			c.refuse(CauseDuplicateExport, unix.ENOEXEC, fmt.Sprintf("symbol %s is exported already, by %s", e.Name, exporter(other)))
			return
		}
	}
}
