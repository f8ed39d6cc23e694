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
	id    CauseID
	cause string // $1 is its first group

	// foreign: what a build tree of another kernel leads to. When the file names
	// another release than the running one, that is the better answer.
	foreign bool
}{
	{line: `disagrees about version of symbol module_layout`, foreign: true,
		id: CauseModuleLayout, cause: `the file was built against another kernel configuration (CRC of module_layout)`},
	{line: `this_module section size must match`, foreign: true,
		id: CauseStructSize, cause: `the file was built against another kernel configuration (size of struct module)`},
	{line: "version magic ['`](.*?) *' should be ['`](.*?) *'", foreign: true,
		id: CauseVermagic, cause: `the file's vermagic is "$1", the kernel's is "$2"`},
	{line: `disagrees about version of symbol (\S+)`, foreign: true,
		id: CauseSymbolCRC, cause: `symbol $1 has another type (CRC) here than in the build tree of the file`},
	{line: `no symbol version for (\S+)`,
		id: CauseNoSymbolCRC, cause: `the file has no CRC for symbol $1: it was built without the Module.symvers of the module that exports it`},
	{line: `uses symbol \(?([^\s)]+)\)? from namespace ([^\s,]+), but does not import it`,
		id: CauseNamespace, cause: `symbol $1 is in namespace $2, which the file does not import (MODULE_IMPORT_NS)`},
	{line: `tries to import module namespace: (\S+)`,
		id: CauseModuleNamespace, cause: `namespace $1 is kept for modules that the kernel names`},
	{line: `gave up waiting for init of module (\S+?)\.?$`,
		id: CauseDependencyInInit, cause: `module $1, whose symbols it needs, has been in its init for more than 30 seconds`},
	{line: `Unknown symbol (\S+) \(err -2\)`,
		id: CauseSymbolMissing, cause: `symbol $1 is exported by nothing that is loaded`},
	{line: `exports duplicate symbol (\S+) \(owned by (\S+)\)`,
		id: CauseDuplicateExport, cause: `symbol $1 is exported already, by $2`},
	{line: `(\S+): can only take (\d+) arguments`,
		id: CauseParamCount, cause: `parameter $1 takes at most $2 values`},
	{line: "['`](.*)' invalid for parameter ['`](\\S+)'",
		id: CauseParamValue, cause: `"$1" is not a value for parameter $2`},
	{line: "['`](.*)' too large for parameter ['`](\\S+)'",
		id: CauseParamLength, cause: `"$1" is too long for parameter $2`},
	// Its second line, with the text, stays hidden: cut at 1 KiB, it has no end yet.
	{line: `(\S+): string parameter too long`,
		id: CauseParamLength, cause: `the text for parameter $1 is longer than 1024 bytes`},
	{line: `Invalid architecture in ELF header`,
		id: CauseArch, cause: `the file was built for another processor architecture`},
	{line: `Invalid ELF header magic`,
		id: CauseNotELF, cause: `the file is not an ELF file`},
	{line: `^Invalid ELF|ELF Spec violation`,
		id: CauseTruncated, cause: `the file is damaged or cut short`},
	{line: `has no symbols \(stripped\?\)`,
		id: CauseStripped, cause: `the file's symbol table was stripped (strip -g keeps it)`},
	{line: `No module found in object|Exactly one \.gnu\.linkonce\.this_module`,
		id: CauseNotModule, cause: `the file is an object file but not a kernel module`},
	{line: `section (\S+) \(index \d+\) has invalid WRITE\|EXEC flags`,
		id: CauseWriteExec, cause: `section $1 of the file is writable and executable`},
	{line: `[Ii]nvalid relocation target|overflow in relocation type`,
		id: CauseRelocation, cause: `the kernel cannot relocate the file: it was linked twice or by another toolchain`},
	{line: `please compile with -fno-common`,
		id: CauseRelocation, cause: `the file has variables without a place (COMMON): it was compiled without -fno-common`},
	{line: `failed to validate module \[\S+\] BTF`, foreign: true,
		id: CauseBTF, cause: `the file's BTF does not fit that of the kernel`},
	{line: `Could not allocate (\d+) bytes percpu`,
		id: CausePercpu, cause: `no room for $1 bytes of per-CPU data`},
	{line: `module is already loaded`,
		id: CauseBuiltinName, cause: `a module of this name is built into the kernel`},
	{line: `is blacklisted`,
		id: CauseBlacklisted, cause: `module_blacklist= on the kernel command line names it`},
	{line: `Lockdown: .*unsigned module loading is restricted`,
		id: CauseLockdown, cause: `the kernel is locked down (Secure Boot) and the file has no signature that it trusts`},
	{line: `Loading of unsigned module is rejected`,
		id: CauseUnsigned, cause: `the kernel takes signed modules only, and the file is unsigned (or was stripped after signing)`},
	{line: `Loading of module with unavailable key is rejected`,
		id: CauseUnknownKey, cause: `the kernel takes signed modules only, and does not have the key that signed the file`},
	{line: `Loading of module with unsupported crypto is rejected`,
		id: CauseSignatureKind, cause: `the kernel cannot check this kind of signature`},
	{line: `LoadPin: `,
		id: CauseLoadPin, cause: `LoadPin lets modules come only from the file system of the first one`},
	{line: `impossible to appraise a module`,
		id: CauseIMA, cause: `IMA appraises modules, which needs finit_module(2)`},
}

// causeByErrno is for the refusals, about 40 of 100, of which the kernel prints nothing.
var causeByErrno = map[string]map[unix.Errno]verdict{
	Insert: {
		unix.EPERM:        {CauseSecurityPolicy, `no log line: lockdown (it prints its first ten refusals only), a container's root, or the module's own init`},
		unix.EACCES:       {CauseSecurityPolicy, `a security policy (IMA appraisal, SELinux) forbids it`},
		unix.EEXIST:       {CauseInit, `the module's own init returned it: something that it registers exists already`},
		unix.EBUSY:        {CauseInit, `the module's own init returned it, or another load of the same module kept failing meanwhile`},
		unix.EKEYREJECTED: {CauseSignatureDiffers, `the signing key is trusted, but the file has changed since it was signed`},
		unix.ENOKEY:       {CauseUnknownKey, `the kernel does not have the key that signed the file`},
		unix.EBADMSG:      {CauseSignatureDamaged, `the signature at the end of the file is damaged`},
		unix.ETXTBSY:      {CauseFileBusy, `the file is open for writing`},
		unix.EFBIG:        {CauseFileTooBig, `the file is larger than 2 GiB`},
		unix.ENOEXEC:      {CauseInit, `the module's own init returned it, or the file has no vermagic or no CRCs, which this kernel asks for`},
		unix.ENOMEM:       {CauseMemory, `no memory, for the module or for what its own init asks for`},
		unix.ENODEV:       {CauseInit, `the module's own init returned it: there is no such device here`},
	},
	Remove: {
		unix.EPERM: {CauseSecurityPolicy, `no log line: a container's root, or kernel.modules_disabled`},
	},
}

// verdict is a cause, for programs and in words for people.
type verdict struct {
	id    CauseID
	cause string
}

// judge explains e from its log, its errno and the releases. Without a line it
// guesses only if logged, that is, if the kernel's silence was heard.
func (e *KernelError) judge(logged bool) {
	v := e.verdict(logged)
	e.CauseID, e.Cause = v.id, v.cause
}

func (e *KernelError) verdict(logged bool) verdict {
	for _, rule := range causeByLine {
		pattern := regexp.MustCompile(rule.line)
		for _, line := range e.Log {
			m := pattern.FindStringSubmatchIndex(line)
			if m == nil {
				continue
			}
			if rule.foreign && e.otherRelease() {
				return verdict{rule.id, "the file was built for " + e.BuiltFor}
			}
			cause := string(pattern.ExpandString(nil, rule.cause, line, m))
			if licence := e.nonGPL(); licence != "" && strings.Contains(line, "Unknown symbol") {
				cause += `, or only for GPL modules: the file's licence is "` + licence + `"`
			}
			return verdict{rule.id, cause}
		}
	}
	if e.Op == Insert && e.Errno == unix.ENOEXEC && e.otherRelease() {
		return verdict{CauseOtherKernel, "the file was built for " + e.BuiltFor}
	}
	if !logged {
		return verdict{id: CauseUnknown}
	}
	if v, ok := causeByErrno[e.Op][e.Errno]; ok {
		return v
	}
	if e.Op == Remove {
		return verdict{id: CauseUnknown}
	}
	// All other checks of the kernel's loader print a line.
	return verdict{CauseInit, "the module's own init returned it"}
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
