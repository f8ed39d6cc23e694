package kernel

import "strings"

// Enforcement is what the running kernel says of modules without a signature that it trusts.
type Enforcement struct {
	SigEnforce string // module.sig_enforce: Y or N; "" of a kernel that looks at no signatures (CONFIG_MODULE_SIG)
	Lockdown   string // kernel_lockdown(7), since Linux 5.4: none, integrity or confidentiality; "" where it cannot be read
}

// Enforcement reads it from /sys. What cannot be read is empty.
func (r Root) Enforcement() Enforcement {
	enforce, _ := r.ReadFile("/sys/module/module/parameters/sig_enforce")
	levels, _ := r.ReadFile("/sys/kernel/security/lockdown") // none [integrity] confidentiality
	_, rest, _ := strings.Cut(string(levels), "[")
	level, _, _ := strings.Cut(rest, "]")
	return Enforcement{strings.TrimSpace(string(enforce)), level}
}

// Enforced reports whether module.sig_enforce is on, which Secure Boot sees to on distributions' kernels.
func (e Enforcement) Enforced() bool { return e.SigEnforce == "Y" }

// Locked reports whether the kernel is locked down, at integrity or above.
func (e Enforcement) Locked() bool { return e.Lockdown != "" && e.Lockdown != "none" }

// SignedOnly reports whether the kernel takes signed modules only.
func (e Enforcement) SignedOnly() bool { return e.Enforced() || e.Locked() }
