package loadertest

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Answer is how loads of a module end.
type Answer struct {
	Errno  unix.Errno // 0: it becomes live
	Log    []string   // what is printed before the error
	InInit bool       // the module's own init returns Errno; without, the kernel's loader does
	During func()     // runs in place of the module's init
	Taint  string     // letters that the module gets beside those that its file says
}

// Refusal is a row of the catalogue: a cause, and how Linux 6.1 tells it.
type Refusal struct {
	Name string
	Answer
}

// Catalogue is how a kernel refuses a module, by cause: what Linux 6.1 was seen to
// answer to files made for it.
func Catalogue(module string) []Refusal {
	row := func(name string, errno unix.Errno, log ...string) Refusal {
		for i, line := range log {
			log[i] = strings.ReplaceAll(line, "X", module)
		}
		return Refusal{name, Answer{Errno: errno, Log: log}}
	}
	init := func(errno unix.Errno) Refusal {
		return Refusal{"init returned " + unix.ErrnoName(errno), Answer{Errno: errno, InInit: true}}
	}
	return []Refusal{
		row("lockdown", unix.EPERM, "Lockdown: kmodctl: unsigned module loading is restricted; see man kernel_lockdown.7"),
		row("module_blacklist", unix.EPERM, "Module X is blacklisted"),
		row("LoadPin", unix.EPERM, `LoadPin: kernel-module denied obj="/tmp/X.ko" pid=7 cmdline="kmodctl"`),
		row("unsigned", unix.EKEYREJECTED, "Loading of unsigned module is rejected"),
		row("unknown key", unix.EKEYREJECTED, "Loading of module with unavailable key is rejected"),
		row("no PKCS#7", unix.EKEYREJECTED, "module: not signed with expected PKCS#7 message", "Loading of module with unsupported crypto is rejected"),
		row("changed after signing", unix.EKEYREJECTED),
		row("damaged signature", unix.EBADMSG),
		row("other architecture", unix.ENOEXEC, "Invalid architecture in ELF header: 183"),
		row("cut short", unix.ENOEXEC, "Invalid ELF section header overflow"),
		row("stripped", unix.ENOEXEC, "X: module has no symbols (stripped?)"),
		row("no module", unix.ENOEXEC, "X: No module found in object"),
		row("vermagic", unix.ENOEXEC, "X: version magic '6.1.0 SMP PREEMPT mod_unload ' should be '6.1.0 SMP mod_unload '"),
		row("module_layout", unix.ENOEXEC, "X: disagrees about version of symbol module_layout"),
		row("struct module", unix.ENOEXEC, "module X: .gnu.linkonce.this_module section size must match the kernel's built struct module size at run time"),
		row("writable code", unix.ENOEXEC, "X: section .text (index 2) has invalid WRITE|EXEC flags"),
		row("duplicate export", unix.ENOEXEC, "X: exports duplicate symbol register_netdev (owned by kernel)"),
		row("relocation", unix.ENOEXEC, "x86/modules: Invalid relocation target, existing value is nonzero for type 1, loc 0, val 0"),
		row("symbol CRC", unix.EINVAL, "X: disagrees about version of symbol _printk", "X: Unknown symbol _printk (err -22)"),
		row("no CRC", unix.EINVAL, "X: no symbol version for k_exported", "X: Unknown symbol k_exported (err -22)"),
		row("namespace", unix.EINVAL, "X: module uses symbol (k_nsfn) from namespace NS, but does not import it.", "X: Unknown symbol k_nsfn (err -22)"),
		row("parameter value", unix.EINVAL, "X: `abc' invalid for parameter `n'"),
		row("too many values", unix.EINVAL, "arr: can only take 3 arguments", "X: `1' invalid for parameter `arr'"),
		row("name of a built-in", unix.EINVAL, "X: module is already loaded"),
		row("missing symbol", unix.ENOENT, "X: Unknown symbol k_nowhere (err -2)"),
		row("GPL-only symbol", unix.ENOENT, "X: module license 'Propri' taints kernel.", "X: Unknown symbol k_gplonly (err -2)"),
		row("dependency hangs in init", unix.EBUSY, "X: gave up waiting for init of module other.", "X: Unknown symbol k_exported (err -16)"),
		row("open for writing", unix.ETXTBSY),
		row("IMA", unix.EACCES),
		row("too large", unix.EFBIG),
		row("string too long", unix.ENOSPC, "st: string doesn't fit in 3 chars.", "X: `12345' too large for parameter `st'"),
		row("number out of range", unix.ERANGE, "X: `300' invalid for parameter `by'"),
		row("no room for per-CPU data", unix.ENOMEM, "X: Could not allocate 65536 bytes percpu data"),
		init(unix.ENODEV), init(unix.EEXIST), init(unix.EBUSY), init(unix.EIO), init(unix.EPERM), init(unix.ENOENT), init(unix.EINVAL), init(unix.ENOEXEC),
	}
}
