package loader_test

import (
	"cmp"
	"debug/elf"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kmodctl/loader"
)

// damaged are the files of the catalogue that no build makes.
var damaged = []struct {
	name string
	of   string // "" is victim
	how  damage
}{
	{"empty", "", only("")},
	{"text", "", only("#!/bin/sh\necho no module\n")},
	{"tenbytes", "", firstBytes(10)},
	{"half", "", half},
	{"otherarch", "", machine(elf.EM_AARCH64)},
	{"program", "", executable},
	{"stripped", "", program("strip", "--strip-all")},
	{"writeexec", "", writable(".init.text")},
	{"linkedtwice", "", linkedTwice},
	{"structsize", "", larger(".gnu.linkonce.this_module", 64)},
	{"toolarge", "", larger(".bss", 1700<<20)},

	{"vermagic", "", word("SMP preempt ", "SMP PREEMPT ")},
	{"vermagicrelease", "", word("vermagic=6.", "vermagic=5.")},
	{"novermagic", "", word("vermagic=", "vermagix=")},
	{"crclayout", "", otherCRC("module_layout")},
	{"crcprintk", "", otherCRC("_printk")},
	{"crcgiver", "taker", otherCRC("giver_plain")},
	{"nocrcgiver", "taker", noCRC("giver_plain")},
	{"nocrcprintk", "", noCRC("_printk")},
	{"nocrcs", "", word("\x00__versions\x00", "\x00__Versions\x00")},
	{"nosymbol", "taker", word("giver_plain\x00", "never_there\x00")},
	{"unexported", "taker", word("giver_plain\x00", "find_symbol\x00")},
	{"clashkernel", "giver", word("giver_plain\x00", "kfree_const\x00")},
	{"clashmodule", "giver", word("giver\x00", "twins\x00")},
	{"gplonly", "takergpl", word("license=GPL\x00", "license=BSD\x00")},
	{"nonamespace", "takerns", word("import_ns=", "import_xs=")},
	{"othernamespace", "takerns", word("KMODCTL_GIVER", "KMODCTL_OTHER")},
	{"nolicence", "", word("license=", "licence=")},
	{"noretpoline", "", word("retpoline=", "retpolinx=")},
	{"builtinname", "", word("victim\x00", "printk\x00")},
	{"staging", "", word("author=kmodctl authors\x00", "staging=Y\x00author=abcde\x00")},
	{"livepatch", "", word("author=kmodctl authors\x00", "livepatch=Y\x00author=abc\x00")},

	{"gz", "", gzipped},
	{"xz32", "", filter("xz", "--check=crc32")},
	{"xz64", "", filter("xz", "--check=crc64")},
	{"zst", "", filter("zstd", "-q")},
	{"xzhalf", "xz64", half},

	{"siglength", "signed", trailerByte(8, 0x7f)},
	{"sigparams", "signed", trailerByte(0, 1)},
	{"sigkind", "signed", trailerByte(2, 0)},
	{"siggarbage", "signed", badPKCS7},
	{"marker", "", func(_ *testing.T, m []byte) []byte { return append(m, marker...) }},
	{"sigchanged", "intree", word("description=LLC", "description=llc")},
	{"sigremoved", "intree", unsigned},
}

// refusal is a row of the catalogue: what is asked, and what must come of it.
type refusal struct {
	boot string // the kernel's command line
	ask  question
	want expect
	old  *expect // on 6.1, where that differs
}

// expect is what a row must come to.
type expect struct {
	errno unix.Errno     // the kernel's answer; 0: it is loaded
	cause loader.CauseID // what the loader must name
	says  string         // or, if it is no *KernelError, what its error must say; of a load, what must be told beside it

	// offline is what must be named without asking the kernel, where that is another
	// word than cause: a better one, or nothing for what cannot be known.
	offline loader.CauseID
}

// nothing is what cannot be known without asking the kernel.
const nothing loader.CauseID = "nothing"

// alone is what the offline check must say.
func (e expect) alone() loader.CauseID {
	switch offline := cmp.Or(e.offline, e.cause); offline {
	case nothing, loader.CauseInit, loader.CauseMemory, loader.CausePercpu, loader.CauseDependencyInInit, loader.CauseBusy:
		return ""
	default:
		return offline
	}
}

func (r *refusal) on(release string) expect {
	if r.old != nil && strings.HasPrefix(release, "6.1.") {
		return *r.old
	}
	return r.want
}

// The kernel command lines.
const (
	plain    = ""
	enforce  = "module.sig_enforce=1"
	lockdown = "lockdown=integrity"
	denied   = "module_blacklist=owned"
	appraise = "ima_policy=secure_boot ima_appraise=enforce"
)

func refused(boot string, q question, errno unix.Errno, cause loader.CauseID, offline ...loader.CauseID) refusal {
	return row(boot, q, expect{errno: errno, cause: cause}, offline)
}

// stopped is refused by the loader itself; errno is what the kernel says when it is asked nevertheless.
func stopped(boot string, q question, errno unix.Errno, says string, offline ...loader.CauseID) refusal {
	return row(boot, q, expect{errno: errno, says: says}, offline)
}

// loaded is taken by the kernel, and what it or the loader remarks is told.
func loaded(boot string, q question, says string, offline ...loader.CauseID) refusal {
	return row(boot, q, expect{says: says}, offline)
}

func row(boot string, q question, e expect, offline []loader.CauseID) refusal {
	q.Policy = q.Policy || boot != plain
	if len(offline) > 0 {
		e.offline = offline[0]
	}
	return refusal{boot: boot, ask: q, want: e}
}

// file asks for a specimen to be inserted.
func file(row, name string, first ...string) question {
	return question{Row: row, File: name, First: first}
}

// param asks for victim with parameters.
func param(row, params string) question {
	return question{Row: row, File: "victim", Params: params}
}

// returning asks for a module whose init returns a number.
func returning(ret string) question {
	return question{Row: "init returns " + ret, File: "answers", Params: "ret=" + ret}
}

var catalogue = []refusal{
	// Taints: some lines are printed once in the life of a kernel.
	loaded(plain, file("out of tree, unsigned", "victim"), "out-of-tree module taints kernel"),
	loaded(plain, file("proprietary", "owned"), "license 'Proprietary' taints kernel"),
	loaded(plain, file("inherits proprietary", "heir", "owned"), "from proprietary module owned, inheriting taint"),
	loaded(plain, file("no retpoline", "noretpoline"), "not compiled with retpoline"),
	loaded(plain, file("staging", "staging"), "is from the staging directory"),
	loaded(plain, file("livepatch", "livepatch"), "TAINT_LIVEPATCH"),
	loaded(plain, file("no vermagic", "novermagic"), "bad vermagic: kernel tainted"),
	loaded(denied, file("no licence", "nolicence"), "license 'unspecified' taints kernel"),
	loaded(denied, file("no CRCs", "nocrcs"), "module_layout: kernel tainted"),

	// Files.
	stopped(plain, file("empty file", "empty"), unix.EINVAL, "truncated: empty file", loader.CauseTruncated),
	stopped(plain, file("text file", "text"), unix.ENOEXEC, "not an ELF file", loader.CauseNotELF),
	stopped(plain, file("10 bytes", "tenbytes"), unix.ENOEXEC, "truncated: ELF header", loader.CauseTruncated),
	stopped(plain, file("half a file", "half"), unix.ENOEXEC, "truncated: section headers", loader.CauseTruncated),
	refused(plain, file("other architecture", "otherarch"), unix.ENOEXEC, loader.CauseArch),
	stopped(plain, file("program", "program"), unix.ENOEXEC, "not a kernel module: ELF type ET_EXEC", loader.CauseNotModule),
	stopped(plain, file("object file", "notmodule"), unix.ENOEXEC, "not a kernel module: .gnu.linkonce.this_module", loader.CauseNotModule),
	stopped(plain, file("stripped", "stripped"), unix.ENOEXEC, "without a symbol table", loader.CauseStripped),
	refused(plain, file("section writable and executable", "writeexec"), unix.ENOEXEC, loader.CauseWriteExec),
	refused(plain, file("linked twice", "linkedtwice"), unix.ENOEXEC, loader.CauseRelocation),
	refused(plain, file("COMMON symbol", "common"), unix.ENOEXEC, loader.CauseRelocation),
	stopped(plain, file("folder", "folder"), unix.EINVAL, "not a regular file", loader.CauseNotReadable),
	stopped(plain, file("no such file", "missing"), unix.ENOENT, "no such file", loader.CauseNotReadable),
	refused(plain, question{Row: "open for writing", File: "victim", While: whileWritten}, unix.ETXTBSY, loader.CauseFileBusy),
	loaded(plain, file("gzip", "gz"), ""),
	loaded(plain, file("xz, crc32", "xz32"), ""),
	loaded(plain, file("xz, crc64", "xz64"), ""),
	loaded(plain, file("zstd", "zst"), ""),
	stopped(plain, file("half an xz file", "xzhalf"), unix.ENOEXEC, "decompress xz", loader.CauseTruncated),

	// Another kernel.
	{plain, file("other kernel", "foreign"), expect{errno: unix.ENOEXEC, cause: loader.CauseStructSize},
		&expect{errno: unix.ENOEXEC, cause: loader.CauseModuleLayout}},
	{plain, file("size of struct module", "structsize"), expect{errno: unix.ENOEXEC, cause: loader.CauseStructSize},
		&expect{}}, // 6.1 does not look
	refused(plain, file("vermagic", "vermagic"), unix.ENOEXEC, loader.CauseVermagic),
	loaded(plain, file("release in vermagic", "vermagicrelease"), ""),
	refused(plain, file("CRC of module_layout", "crclayout"), unix.ENOEXEC, loader.CauseModuleLayout),
	refused(plain, file("CRC of a kernel's symbol", "crcprintk"), unix.EINVAL, loader.CauseSymbolCRC),
	refused(plain, file("CRC of a module's symbol", "crcgiver", "giver"), unix.EINVAL, loader.CauseSymbolCRC),
	refused(plain, file("no CRC of a module's symbol", "nocrcgiver", "giver"), unix.EINVAL, loader.CauseNoSymbolCRC),
	refused(plain, file("no CRC of a kernel's symbol", "nocrcprintk"), unix.EINVAL, loader.CauseNoSymbolCRC),

	// Symbols.
	refused(plain, file("dependency not loaded", "taker"), unix.ENOENT, loader.CauseSymbolMissing),
	refused(plain, file("unknown symbol", "nosymbol", "giver"), unix.ENOENT, loader.CauseSymbolMissing),
	refused(plain, file("symbol not exported", "unexported"), unix.ENOENT, loader.CauseSymbolMissing),
	refused(plain, file("GPL-only symbol", "gplonly", "giver"), unix.ENOENT, loader.CauseSymbolMissing, loader.CauseGPLOnly),
	refused(plain, file("namespace not imported", "nonamespace", "giver"), unix.EINVAL, loader.CauseNamespace),
	refused(plain, file("other namespace imported", "othernamespace", "giver"), unix.EINVAL, loader.CauseNamespace),
	refused(plain, file("exports a symbol of the kernel", "clashkernel"), unix.ENOEXEC, loader.CauseDuplicateExport),
	refused(plain, file("exports a symbol of a module", "clashmodule", "giver"), unix.ENOEXEC, loader.CauseDuplicateExport),
	refused(plain, question{Row: "name of a built-in module", File: "builtinname", Policy: true}, unix.EINVAL, loader.CauseBuiltinName),

	// Memory.
	refused(plain, file("per-CPU data", "percpu"), unix.ENOMEM, loader.CausePercpu),
	refused(plain, file("1.7 GiB of data", "toolarge"), unix.ENOMEM, loader.CauseMemory),

	// Parameters.
	refused(plain, param("int: a word", "number=abc"), unix.EINVAL, loader.CauseParamValue),
	refused(plain, param("int: no value", "number"), unix.EINVAL, loader.CauseParamValue),
	refused(plain, param("int: too large", "number=99999999999"), unix.ERANGE, loader.CauseParamValue),
	refused(plain, param("byte: 300", "small=300"), unix.ERANGE, loader.CauseParamValue),
	refused(plain, param("byte: -1", "small=-1"), unix.EINVAL, loader.CauseParamValue),
	refused(plain, param("bool: maybe", "flag=maybe"), unix.EINVAL, loader.CauseParamValue),
	refused(plain, param("array of 3: 4 values", "list=1,2,3,4"), unix.EINVAL, loader.CauseParamCount),
	refused(plain, param("array: a word", "list=1,x"), unix.EINVAL, loader.CauseParamValue),
	refused(plain, param("string of 7 bytes: 8", "word=12345678"), unix.ENOSPC, loader.CauseParamLength),
	refused(plain, param("charp: 1025 bytes", "text="+strings.Repeat("x", 1025)), unix.ENOSPC, loader.CauseParamLength),
	loaded(plain, param("unknown parameter", "nosuch=1"), "unknown parameter 'nosuch' ignored", nothing),
	loaded(plain, param("parameter in capitals", "Number=1"), "unknown parameter 'Number' ignored", nothing),
	loaded(plain, param("parameters after --", "number=1 -- small=1"), "parameters 'small=1' after `--' ignored"),

	// Signatures that are judged whether or not they are required.
	stopped(plain, file("signature: length", "siglength"), unix.EBADMSG, "malformed: signature", loader.CauseSignatureDamaged),
	stopped(plain, file("signature: fields not 0", "sigparams"), unix.EBADMSG, "malformed: signature", loader.CauseSignatureDamaged),
	stopped(plain, file("signature: garbage", "siggarbage"), unix.EBADMSG, "malformed: signature", loader.CauseSignatureDamaged),
	refused(plain, file("signature: changed since", "sigchanged"), unix.EKEYREJECTED, loader.CauseSignatureDiffers),
	loaded(plain, file("signature: not PKCS#7", "sigkind"), "not signed with expected PKCS#7 message"),
	loaded(plain, file("signature: unknown key", "signed"), ""),

	// init.
	refused(plain, returning("-19"), unix.ENODEV, loader.CauseInit),
	refused(plain, returning("-5"), unix.EIO, loader.CauseInit),
	refused(plain, returning("-12"), unix.ENOMEM, loader.CauseMemory),
	refused(plain, returning("-16"), unix.EBUSY, loader.CauseInit),
	refused(plain, returning("-17"), unix.EEXIST, loader.CauseInit),
	refused(plain, returning("-22"), unix.EINVAL, loader.CauseInit),
	refused(plain, returning("-2"), unix.ENOENT, loader.CauseInit),
	refused(plain, returning("-1"), unix.EPERM, loader.CauseSecurityPolicy, nothing),
	refused(plain, returning("-8"), unix.ENOEXEC, loader.CauseInit),
	refused(plain, returning("-517"), unix.Errno(517), loader.CauseInit),
	loaded(plain, returning("5"), "suspiciously returned 5"),

	// Removals.
	loaded(plain, question{Row: "remove: not loaded", Remove: "victim"}, ""),
	stopped(plain, question{Row: "remove: used by a module", Remove: "owned", First: []string{"owned", "heir"}}, unix.EAGAIN, "in use by heir"),
	stopped(plain, question{Row: "remove: used by a descriptor", Remove: "held", First: []string{"held"}, While: whileOpen}, unix.EAGAIN, "which has /dev/held open"),
	refused(plain, question{Row: "remove: still in its init", Remove: "answers", First: []string{"answers takes_ms=500"}, While: whileStarting}, unix.EBUSY, loader.CauseBusy),
	refused(plain, question{Row: "remove: no exit function", Remove: "exitless", First: []string{"exitless"}}, unix.EBUSY, loader.CauseBusy),

	// From here on giver is in its init.
	refused(plain, question{Row: "dependency stuck in its init", File: "taker", First: []string{"giver takes_ms=200000"}, While: whileStarting},
		unix.EBUSY, loader.CauseDependencyInInit),

	// Rights.
	stopped(plain, question{Row: "no capability", File: "victim", While: whileNobody}, unix.EPERM, "no CAP_SYS_MODULE", loader.CauseNoCapability),
	stopped(plain, question{Row: "modules_disabled", File: "victim", While: whileDisabled}, unix.EPERM, "kernel.modules_disabled is 1", loader.CauseModulesDisabled),
	stopped(plain, question{Row: "remove: modules_disabled", Remove: "exitless", While: whileDisabled}, unix.EPERM, "kernel.modules_disabled is 1"),
	refused(denied, file("module_blacklist=", "owned"), unix.EPERM, loader.CauseBlacklisted),
	loaded(enforce, file("sig_enforce: good", "intree"), ""),
	refused(enforce, file("sig_enforce: unsigned", "victim"), unix.EKEYREJECTED, loader.CauseUnsigned),
	refused(enforce, file("sig_enforce: signature removed", "sigremoved"), unix.EKEYREJECTED, loader.CauseUnsigned),
	refused(enforce, file("sig_enforce: unknown key", "signed"), unix.EKEYREJECTED, loader.CauseUnknownKey),
	refused(enforce, file("sig_enforce: not PKCS#7", "sigkind"), unix.EKEYREJECTED, loader.CauseSignatureKind),
	refused(enforce, file("sig_enforce: changed since", "sigchanged"), unix.EKEYREJECTED, loader.CauseSignatureDiffers),
	loaded(lockdown, file("lockdown: good", "intree"), ""),
	refused(lockdown, file("lockdown: unsigned", "victim"), unix.EPERM, loader.CauseLockdown),
	refused(lockdown, file("lockdown: unknown key", "signed"), unix.EPERM, loader.CauseLockdown),
	refused(lockdown, file("lockdown: changed since", "sigchanged"), unix.EKEYREJECTED, loader.CauseSignatureDiffers),
	refused(appraise, file("IMA appraisal", "victim"), unix.EACCES, loader.CauseSecurityPolicy, loader.CauseIMA),
}
