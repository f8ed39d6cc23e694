package loader

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
)

// The severities of a Finding.
const (
	Refused = "refused" // the kernel will not take the module, or kmodctl should not give it
	Warning = "warning" // it loads, but not as one would wish
)

// Finding is what Check knows of one module before the kernel is asked.
type Finding struct {
	Module   string     `json:"module"`
	Cause    CauseID    `json:"cause"`
	Text     string     `json:"text"`               // the cause in plain words
	Evidence []string   `json:"evidence,omitempty"` // the facts that it was found by
	Errno    unix.Errno `json:"errno,omitempty"`    // what the system call would return; 0 for a warning, and where only kmodctl objects
	Severity string     `json:"severity"`           // Refused or Warning
}

// Check says which of a plan's insertions a kernel would refuse, and why, from files alone: the modules, what the kernel
// and its modules export, and what the running kernel lets in. Findings come in the order of the plan, those of one module in
// that of the kernel's checks, so that the first with an Errno is the one that the system call would return.
//
// What a module's init function will say, memory and devices cannot be known.
func Check(plan *Plan, t *Target) []Finding {
	c := &check{plan: plan, target: t, files: make([]file, len(plan.Steps))}
	c.open(plan.Steps)
	c.resolve(plan.Steps)
	for i, s := range plan.Steps {
		if s.Action != Insert {
			continue
		}
		c.module = s.Module
		c.policy()
		switch f := c.files[i]; {
		case f.err != nil:
			c.access(s.Path, "")
			c.unreadable(f.err)
		case f.info != nil && f.fits:
			c.parameters(f.info, s)
		case f.info != nil:
			c.access(s.Path, f.info.Compression)
			c.file(f.info, s, i)
		}
	}
	return c.findings
}

// FirstRefused is the first finding that is one.
func FirstRefused(findings []Finding) (Finding, bool) {
	i := slices.IndexFunc(findings, func(f Finding) bool { return f.Severity == Refused })
	if i < 0 {
		return Finding{}, false
	}
	return findings[i], true
}

// check is one run of Check.
type check struct {
	plan     *Plan
	target   *Target
	files    []file // by number of the step
	findings []Finding
	module   string // the one that findings are about

	known   error            // why it is not known what the kernel exports; nil when it is
	offered map[string]offer // by the kernel and the modules that came with it
	own     map[string]offer // by the files of the plan, which stand before those of the same name
	steps   map[string]int   // by module: the step that brings it
	live    map[string]bool  // what nothing offers, and something that is loaded has
}

// file is what was read of a step's module; neither field is set for one that need not be looked at.
type file struct {
	info *ko.Info
	err  error
	fits bool // it came with the kernel
}

func (c *check) add(severity string, cause CauseID, errno unix.Errno, text string, evidence ...string) {
	c.findings = append(c.findings, Finding{c.module, cause, text, evidence, errno, severity})
}

func (c *check) refuse(cause CauseID, errno unix.Errno, text string, evidence ...string) {
	c.add(Refused, cause, errno, text, evidence...)
}

func (c *check) warn(cause CauseID, text string, evidence ...string) {
	c.add(Warning, cause, 0, text, evidence...)
}

// open reads the files of a plan. Modules that came with the kernel fit it: they are opened to check parameters that somebody
// typed, and else only for a Thorough target.
func (c *check) open(steps []Step) {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	read := func(i int, path string) {
		g.Go(func() error {
			c.files[i].info, c.files[i].err = ko.Open(path)
			return nil
		})
	}
	strange := false // there is a file whose symbols must be looked up
	for i, s := range steps {
		if s.Action == Insert {
			c.files[i].fits = !c.target.Thorough && c.target.intree(s.Path)
			strange = strange || !c.files[i].fits
			if !c.files[i].fits || c.plan.Params != "" && slices.Contains(c.plan.Asked, s.Module) {
				read(i, s.Path)
			}
		}
	}
	// What is live may be a module whose exports are in no table of the kernel.
	for i, s := range steps {
		if strange && s.Action == None {
			if path, ok := c.target.find(s.Module); ok && (!c.target.intree(path) || c.target.Thorough && c.target.kernel().Tree == nil) {
				read(i, path)
			}
		}
	}
	g.Wait()
}

// unreadable judges a file that is no module.
func (c *check) unreadable(err error) {
	var bad *ko.FormatError
	refuse := func(cause CauseID, text string) { c.refuse(cause, unix.ENOEXEC, text, err.Error()) }
	switch errors.As(err, &bad); {
	case bad == nil:
		var errno unix.Errno
		errors.As(err, &errno)
		c.refuse(CauseNotReadable, errno, "the file cannot be read", err.Error())
	case !isRegular(bad.Path):
		c.refuse(CauseNotReadable, unix.EINVAL, "it is no file but a folder, or a device", err.Error())
	case bad.Section == "signature" && !errors.Is(err, ko.ErrTruncated):
		c.refuse(CauseSignatureDamaged, unix.EBADMSG, "the signature at the end of the file is damaged", err.Error())
	case errors.Is(err, ko.ErrNotELF):
		refuse(CauseNotELF, "the file is not an ELF file")
	case errors.Is(err, ko.ErrTruncated) && isEmpty(bad.Path):
		c.refuse(CauseTruncated, unix.EINVAL, "the file is empty", err.Error())
	case errors.Is(err, ko.ErrTruncated):
		refuse(CauseTruncated, "the file is cut short")
	case errors.Is(err, ko.ErrStripped):
		refuse(CauseStripped, "the file's symbol table was stripped (strip -g keeps it)")
	case errors.Is(err, ko.ErrNotModule):
		refuse(CauseNotModule, "the file is not a kernel module")
	case errors.Is(err, ko.ErrTooLarge):
		refuse(CauseFileTooBig, "the file is too large for a module")
	default:
		refuse(CauseMalformed, "the file is damaged")
	}
}

func isRegular(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func isEmpty(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Size() == 0
}

// file judges a module that could be read. The order is that of the kernel: load_module in kernel/module/main.c.
func (c *check) file(info *ko.Info, s Step, step int) {
	if info.Name != c.module {
		c.module = info.Name
	}
	c.signature(info)
	c.content(info, s.Path)
	if arch := c.target.arch(); arch != "" && info.Arch != arch {
		c.refuse(CauseArch, unix.ENOEXEC, "the file was built for another processor architecture",
			fmt.Sprintf("the file is for %s, the kernel for %s", info.Arch, arch))
		return // nothing else can be compared
	}
	other := c.versions(info)
	if len(info.WriteExec) > 0 {
		c.refuse(CauseWriteExec, unix.ENOEXEC, fmt.Sprintf("section %s of the file is writable and executable", info.WriteExec[0]), info.WriteExec[1:]...)
	}
	if !other { // else its symbols differ for that reason
		c.imports(info, step)
	}
	c.relocations(info)
	if !other {
		c.exports(info, step)
	}
	c.parameters(info, s)
	c.builtin(info)
	if letters := c.target.taints(info); letters != "" {
		c.warn(CauseTaint, "it taints the kernel: "+letters, explainTaints(letters)...)
	}
}

// relocations judges what the kernel cannot place: simplify_symbols and apply_relocations in kernel/module/main.c.
func (c *check) relocations(info *ko.Info) {
	if info.Common != "" {
		c.refuse(CauseRelocation, unix.ENOEXEC, "the file has variables without a place (COMMON): it was compiled without -fno-common", "the first is "+info.Common)
	}
	if info.Relocated != "" {
		c.refuse(CauseRelocation, unix.ENOEXEC, "the file was linked again after it was finished: the places of its relocations are filled", "the first is in section "+info.Relocated)
	}
}

// policy judges what has nothing to do with the file.
func (c *check) policy() {
	p := c.target.policy()
	if p == nil {
		return
	}
	if !p.capable {
		c.refuse(CauseNoCapability, unix.EPERM, ErrNoCapability.Error())
	}
	if p.disabled {
		c.refuse(CauseModulesDisabled, unix.EPERM, ErrModulesDisabled.Error())
	}
	if p.blacklists(c.module) {
		c.refuse(CauseBlacklisted, unix.EPERM, "module_blacklist= on the kernel command line names it")
	}
}

// signature judges the end of the file: module_sig_check in kernel/module/signing.c.
func (c *check) signature(info *ko.Info) {
	p := c.target.policy()
	if p == nil {
		if info.Signature == nil && c.target.option("MODULE_SIG_FORCE") == "y" {
			c.refuse(CauseUnsigned, unix.EKEYREJECTED, "the kernel takes signed modules only, and the file is unsigned (or was stripped after signing)", "CONFIG_MODULE_SIG_FORCE=y")
		}
		return
	}
	if !p.signatures || !p.sigEnforce && !p.lockdown {
		return
	}
	cause, text := CauseID(""), ""
	switch known, visible := p.knows(info.Signature); {
	case info.Signature == nil:
		cause, text = CauseUnsigned, "the file is unsigned (or was stripped after signing)"
	case info.Signature.IDType != "PKCS#7":
		cause, text = CauseSignatureKind, "it cannot check this kind of signature"
	case !known && visible:
		cause, text = CauseUnknownKey, "it does not have the key that signed the file"
	default:
		return
	}
	evidence := []string{}
	if s := info.Signature; s != nil {
		evidence = append(evidence, strings.TrimSpace(fmt.Sprintf("signed by %s, key %s, %s", s.Signer, s.KeyID, s.Hash)))
	}
	if p.sigEnforce {
		c.refuse(cause, unix.EKEYREJECTED, "the kernel takes signed modules only, and "+text, append(evidence, "module.sig_enforce is Y")...)
		return
	}
	c.refuse(CauseLockdown, unix.EPERM, "the kernel is locked down (Secure Boot), and "+text, append(evidence, "/sys/kernel/security/lockdown is at integrity or above")...)
}

// builtin finds a name that is taken by a part of the kernel: mod_sysfs_init refuses it when that part shows in /sys/module.
func (c *check) builtin(info *ko.Info) {
	const text = "a module of this name is built into the kernel"
	switch {
	case c.target.state.isBuiltin(info.Name):
		c.refuse(CauseBuiltinName, unix.EINVAL, text, "/sys/module/"+info.Name+" is there and has no initstate")
	case c.target.shows(info.Name):
		c.refuse(CauseBuiltinName, unix.EINVAL, text, "the kernel's image has parameters or a version of that name")
	case c.target.index.Builtin(info.Name):
		c.warn(CauseBuiltinName, text, "modules.builtin names it")
	}
}
