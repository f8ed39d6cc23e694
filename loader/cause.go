package loader

import (
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// causeByLine reads the kernel's line. The first rule that fits any line wins, so
// that a line which tells more stands before one that follows from it. Lines
// are those of 6.1 and 6.12 (kernel/module/main.c, version.c, signing.c;
// kernel/params.c); newer ones differ by brackets and quotes.
var causeByLine = []struct {
	line  string // a regular expression, compiled only when it is needed
	cause string // $1 is its first group

	// foreign: what a build tree of another kernel leads to. When the file names
	// another release than the running one, that is the better answer.
	foreign bool
}{
	{line: `disagrees about version of symbol module_layout`, foreign: true,
		cause: `the file was built against another kernel configuration (CRC of module_layout)`},
	{line: `this_module section size must match`, foreign: true,
		cause: `the file was built against another kernel configuration (size of struct module)`},
	{line: "version magic ['`](.*?) *' should be ['`](.*?) *'", foreign: true,
		cause: `the file's vermagic is "$1", the kernel's is "$2"`},
	{line: `disagrees about version of symbol (\S+)`, foreign: true,
		cause: `symbol $1 has another type (CRC) here than in the build tree of the file`},
	{line: `no symbol version for (\S+)`,
		cause: `the file has no CRC for symbol $1: it was built without the Module.symvers of the module that exports it`},
	{line: `uses symbol \(?([^\s)]+)\)? from namespace ([^\s,]+), but does not import it`,
		cause: `symbol $1 is in namespace $2, which the file does not import (MODULE_IMPORT_NS)`},
	{line: `tries to import module namespace: (\S+)`,
		cause: `namespace $1 is kept for modules that the kernel names`},
	{line: `gave up waiting for init of module (\S+?)\.?$`,
		cause: `module $1, whose symbols it needs, has been in its init for more than 30 seconds`},
	{line: `Unknown symbol (\S+) \(err -2\)`,
		cause: `symbol $1 is exported by nothing that is loaded`},
	{line: `exports duplicate symbol (\S+) \(owned by (\S+)\)`,
		cause: `symbol $1 is exported already, by $2`},
	{line: `(\S+): can only take (\d+) arguments`,
		cause: `parameter $1 takes at most $2 values`},
	{line: "['`](.*)' invalid for parameter ['`](\\S+)'",
		cause: `"$1" is not a value for parameter $2`},
	{line: "['`](.*)' too large for parameter ['`](\\S+)'",
		cause: `"$1" is too long for parameter $2`},
	{line: `Invalid architecture in ELF header`,
		cause: `the file was built for another processor architecture`},
	{line: `Invalid ELF header magic`,
		cause: `the file is not an ELF file`},
	{line: `^Invalid ELF|ELF Spec violation`,
		cause: `the file is damaged or cut short`},
	{line: `has no symbols \(stripped\?\)`,
		cause: `the file's symbol table was stripped (strip -g keeps it)`},
	{line: `No module found in object|Exactly one \.gnu\.linkonce\.this_module`,
		cause: `the file is an object file but not a kernel module`},
	{line: `section (\S+) \(index \d+\) has invalid WRITE\|EXEC flags`,
		cause: `section $1 of the file is writable and executable`},
	{line: `Invalid relocation target|overflow in relocation type`,
		cause: `the kernel cannot relocate the file: it was linked twice or by another toolchain`},
	{line: `failed to validate module \[\S+\] BTF`, foreign: true,
		cause: `the file's BTF does not fit that of the kernel`},
	{line: `Could not allocate (\d+) bytes percpu`,
		cause: `no room for $1 bytes of per-CPU data`},
	{line: `module is already loaded`,
		cause: `a module of this name is built into the kernel`},
	{line: `is blacklisted`,
		cause: `module_blacklist= on the kernel command line names it`},
	{line: `Lockdown: .*unsigned module loading is restricted`,
		cause: `the kernel is locked down (Secure Boot) and the file has no signature that it trusts`},
	{line: `Loading of unsigned module is rejected`,
		cause: `the kernel takes signed modules only, and the file is unsigned (or was stripped after signing)`},
	{line: `Loading of module with unavailable key is rejected`,
		cause: `the kernel takes signed modules only, and does not have the key that signed the file`},
	{line: `Loading of module with unsupported crypto is rejected`,
		cause: `the kernel cannot check this kind of signature`},
	{line: `LoadPin: `,
		cause: `LoadPin lets modules come only from the file system of the first one`},
	{line: `impossible to appraise a module`,
		cause: `IMA appraises modules, which needs finit_module(2)`},
}

// causeByErrno is for the refusals, about 40 of 100, of which the kernel prints nothing.
var causeByErrno = map[string]map[unix.Errno]string{
	Insert: {
		unix.EPERM:        `no log line: lockdown (it prints its first ten refusals only), a container's root, or the module's own init`,
		unix.EACCES:       `a security policy (IMA appraisal, SELinux) forbids it`,
		unix.EEXIST:       `the module's own init returned it: something that it registers exists already`,
		unix.EBUSY:        `another load of the same module failed meanwhile, or the module's own init returned it`,
		unix.EKEYREJECTED: `the signing key is trusted, but the file has changed since it was signed`,
		unix.ENOKEY:       `the kernel does not have the key that signed the file`,
		unix.EBADMSG:      `the signature at the end of the file is damaged`,
		unix.ETXTBSY:      `the file is open for writing`,
		unix.EFBIG:        `the file is larger than 2 GiB`,
		unix.ENOEXEC:      `the kernel does not take the file's format`,
		unix.ENODEV:       `the module's own init returned it: there is no such device here`,
	},
	Remove: {
		unix.EPERM: `no log line: a container's root, or kernel.modules_disabled`,
	},
}

// cause explains e from its log, its errno and the releases. Without a line it
// guesses only if logged, that is, if the kernel's silence was heard.
func (e *KernelError) cause(logged bool) string {
	for _, rule := range causeByLine {
		pattern := regexp.MustCompile(rule.line)
		for _, line := range e.Log {
			m := pattern.FindStringSubmatchIndex(line)
			if m == nil {
				continue
			}
			if rule.foreign && e.otherRelease() {
				return "the file was built for " + e.BuiltFor
			}
			cause := string(pattern.ExpandString(nil, rule.cause, line, m))
			if licence := e.nonGPL(); licence != "" && strings.Contains(line, "Unknown symbol") {
				cause += `, or only for GPL modules: the file's licence is "` + licence + `"`
			}
			return cause
		}
	}
	if e.Op == Insert && e.Errno == unix.ENOEXEC && e.otherRelease() {
		return "the file was built for " + e.BuiltFor
	}
	if !logged {
		return ""
	}
	if cause := causeByErrno[e.Op][e.Errno]; cause != "" || e.Op == Remove {
		return cause
	}
	// All other checks of the kernel's loader print a line.
	return "the module's own init returned it"
}

func (e *KernelError) otherRelease() bool {
	return e.BuiltFor != "" && e.Release != "" && e.BuiltFor != e.Release
}

// nonGPL returns the licence that the kernel complained about, "" if it did not.
func (e *KernelError) nonGPL() string {
	for _, line := range e.Log {
		if _, after, ok := strings.Cut(line, ": module license '"); ok {
			licence, _, _ := strings.Cut(after, "' taints kernel")
			return licence
		}
	}
	return ""
}
