package loader

import (
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
)

// namedOther are lines of the table that name another module than k_ok.
var namedOther = regexp.MustCompile(`^(k_\w+|x|printk): `)

// TestCauses holds what a user reads under a refusal. The lines were captured
// from 6.1.0-56-amd64 and 6.12.117+deb12-amd64.
func TestCauses(t *testing.T) {
	const here, other = "6.1.0-56-amd64", "6.12.117+deb12-amd64"
	for _, c := range []struct {
		errno    unix.Errno
		builtFor string
		log      []string
		id       CauseID
		cause    string
	}{
		{unix.ENOEXEC, other, []string{"k_ok: disagrees about version of symbol module_layout"}, CauseModuleLayout, "the file was built for " + other},
		{unix.ENOEXEC, here, []string{"k_ok: disagrees about version of symbol module_layout"}, CauseModuleLayout, "the file was built against another kernel configuration (CRC of module_layout)"},
		{unix.ENOEXEC, other, []string{"module k_ok: .gnu.linkonce.this_module section size must match the kernel's built struct module size at run time"}, CauseStructSize, "the file was built for " + other},
		{unix.ENOEXEC, here, []string{"k_ok: version magic '6.1.0-56-amd64 SMP PREEMPT mod_unload modversions ' should be '6.1.0-56-amd64 SMP preempt mod_unload modversions '"}, CauseVermagic,
			`the file's vermagic is "6.1.0-56-amd64 SMP PREEMPT mod_unload modversions", the kernel's is "6.1.0-56-amd64 SMP preempt mod_unload modversions"`},
		{unix.ENOEXEC, other, nil, CauseOtherKernel, "the file was built for " + other},
		{unix.ENOEXEC, here, nil, CauseInit, "the module's own init returned it, or the file has no vermagic or no CRCs, which this kernel asks for"},
		{unix.ENOMEM, here, nil, CauseMemory, "no memory, for the module or for what its own init asks for"},
		{unix.ENOEXEC, here, []string{"module: x86/modules: Skipping invalid relocation target, existing value is nonzero for type 4, loc 000000008ff7f817, val ffffffff8107664c"}, CauseRelocation,
			"the kernel cannot relocate the file: it was linked twice or by another toolchain"},
		{unix.ENOEXEC, here, []string{"k_ok: please compile with -fno-common"}, CauseRelocation, "the file has variables without a place (COMMON): it was compiled without -fno-common"},
		{unix.ENOSPC, here, []string{"text: string parameter too long"}, CauseParamLength, "the text for parameter text is longer than 1024 bytes"},
		{unix.EINVAL, here, []string{"k_ok: disagrees about version of symbol _printk", "k_ok: Unknown symbol _printk (err -22)"}, CauseSymbolCRC,
			"symbol _printk has another type (CRC) here than in the build tree of the file"},
		{unix.EINVAL, here, []string{"k_use: no symbol version for k_exported", "k_use: Unknown symbol k_exported (err -22)"}, CauseNoSymbolCRC,
			"the file has no CRC for symbol k_exported: it was built without the Module.symvers of the module that exports it"},
		{unix.ENOENT, here, []string{"k_ok: loading out-of-tree module taints kernel.", "k_unknown: Unknown symbol k_nowhere (err -2)"}, CauseSymbolMissing,
			"symbol k_nowhere is exported by nothing that is loaded"},
		{unix.ENOENT, here, []string{"k_propgpl2: module license 'Propri' taints kernel.", "k_propgpl2: Unknown symbol k_gplonly (err -2)"}, CauseSymbolMissing,
			`symbol k_gplonly is exported by nothing that is loaded, or only for GPL modules: the file's licence is "Propri"`},
		{unix.EINVAL, here, []string{"k_usens: module uses symbol (k_nsfn) from namespace KMODCTL_NS, but does not import it.", "k_usens: Unknown symbol k_nsfn (err -22)"}, CauseNamespace,
			"symbol k_nsfn is in namespace KMODCTL_NS, which the file does not import (MODULE_IMPORT_NS)"},
		{unix.EINVAL, here, []string{"k_usens: module uses symbol k_nsfn from namespace KMODCTL_NS, but does not import it."}, CauseNamespace,
			"symbol k_nsfn is in namespace KMODCTL_NS, which the file does not import (MODULE_IMPORT_NS)"},
		{unix.ENOENT, here, []string{"x: gave up waiting for init of module y.", "x: Unknown symbol s (err -16)"}, CauseDependencyInInit,
			"module y, whose symbols it needs, has been in its init for more than 30 seconds"},
		{unix.ENOEXEC, here, []string{"k_builtinsym: exports duplicate symbol register_netdev (owned by kernel)"}, CauseDuplicateExport, "symbol register_netdev is exported already, by kernel"},
		{unix.EINVAL, here, []string{"printk: module is already loaded"}, CauseBuiltinName, "a module of this name is built into the kernel"},
		{unix.EINVAL, here, []string{"k_param: `abc' invalid for parameter `howmany'"}, CauseParamValue, `"abc" is not a value for parameter howmany`},
		{unix.ERANGE, here, []string{"k_param: '300' invalid for parameter 'small'"}, CauseParamValue, `"300" is not a value for parameter small`},
		{unix.ENOSPC, here, []string{"buf: string doesn't fit in 7 chars.", "k_param: `12345678' too large for parameter `buf'"}, CauseParamLength, `"12345678" is too long for parameter buf`},
		{unix.EINVAL, here, []string{"arr: can only take 3 arguments", "k_param: `1' invalid for parameter `arr'"}, CauseParamCount, "parameter arr takes at most 3 values"},
		{unix.ENOEXEC, other, []string{"Invalid architecture in ELF header: 183"}, CauseArch, "the file was built for another processor architecture"},
		{unix.ENOEXEC, here, []string{`Invalid ELF header magic: != \x7fELF`}, CauseNotELF, "the file is not an ELF file"},
		{unix.ENOEXEC, here, []string{"Invalid ELF section header overflow"}, CauseTruncated, "the file is damaged or cut short"},
		{unix.ENOEXEC, here, []string{"ELF Spec violation: section 0 type(-1)!=SH_NULL or non-zero len or addr"}, CauseTruncated, "the file is damaged or cut short"},
		{unix.ENOEXEC, here, []string{"k_ok: module has no symbols (stripped?)"}, CauseStripped, "the file's symbol table was stripped (strip -g keeps it)"},
		{unix.ENOEXEC, here, []string{"(missing .modinfo section or name field): No module found in object"}, CauseNotModule, "the file is an object file but not a kernel module"},
		{unix.ENOEXEC, here, []string{"module k_ok: Exactly one .gnu.linkonce.this_module section must exist."}, CauseNotModule, "the file is an object file but not a kernel module"},
		{unix.EPERM, here, []string{"Module k_ok is blacklisted"}, CauseBlacklisted, "module_blacklist= on the kernel command line names it"},
		{unix.EPERM, here, []string{"Lockdown: init: unsigned module loading is restricted; see man kernel_lockdown.7"}, CauseLockdown,
			"the kernel is locked down (Secure Boot) and the file has no signature that it trusts"},
		{unix.EPERM, here, nil, CauseSecurityPolicy, "no log line: lockdown (it prints its first ten refusals only), a container's root, or the module's own init"},
		{unix.EKEYREJECTED, here, []string{"Loading of unsigned module is rejected"}, CauseUnsigned, "the kernel takes signed modules only, and the file is unsigned (or was stripped after signing)"},
		{unix.EKEYREJECTED, here, []string{"Loading of module with unavailable key is rejected"}, CauseUnknownKey, "the kernel takes signed modules only, and does not have the key that signed the file"},
		{unix.EKEYREJECTED, here, []string{"module: not signed with expected PKCS#7 message", "Loading of module with unsupported crypto is rejected"}, CauseSignatureKind, "the kernel cannot check this kind of signature"},
		{unix.EKEYREJECTED, here, nil, CauseSignatureDiffers, "the signing key is trusted, but the file has changed since it was signed"},
		{unix.EBADMSG, here, nil, CauseSignatureDamaged, "the signature at the end of the file is damaged"},
		{unix.ETXTBSY, here, nil, CauseFileBusy, "the file is open for writing"},
		{unix.Errno(517), here, []string{"k_ok: loading out-of-tree module taints kernel."}, CauseInit, "the module's own init returned it"},
	} {
		e := &KernelError{Op: Insert, Module: "k_ok", Release: here, BuiltFor: c.builtFor, Errno: c.errno, Log: c.log}
		if e.judge(true); e.CauseID != c.id || e.Cause != c.cause {
			t.Errorf("%v %q:\n got %s %q\nwant %s %q", c.errno, c.log, e.CauseID, e.Cause, c.id, c.cause)
		}
		for _, line := range c.log {
			if !named(line, "k_ok") && !nameless().MatchString(line) && !namedOther.MatchString(line) {
				t.Errorf("the log window would drop %q", line)
			}
		}
	}
}
