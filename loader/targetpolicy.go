package loader

import (
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/ko"
)

// policy is what the running kernel lets in.
type policy struct {
	capable     bool            // this process has CAP_SYS_MODULE
	disabled    bool            // kernel.modules_disabled
	sigEnforce  bool            // module.sig_enforce, which Secure Boot sets too
	signatures  bool            // the kernel looks at signatures at all (CONFIG_MODULE_SIG)
	lockdown    bool            // kernel_lockdown(7) at integrity or above
	keys        func() []string // descriptions of the keys that this user may see, /proc/keys; empty when he may see none
	appraises   bool            // IMA wants a signature of its own of every module: ima_policy=secure_boot
	blacklisted []string        // module_blacklist= of the kernel's command line
}

// readPolicy is nil for a kernel that does not run here.
func (t *Target) readPolicy() *policy {
	if t.state == nil {
		return nil
	}
	read := func(name string) string { return readLine(under(t.root, name)) }
	enforcement := t.root.Enforcement()
	return &policy{
		capable:     maySysModule(t.root),
		disabled:    read("proc/sys/kernel/modules_disabled") == "1",
		sigEnforce:  enforcement.Enforced(),
		signatures:  enforcement.SigEnforce != "",
		lockdown:    enforcement.Locked(),
		keys:        sync.OnceValue(func() []string { return asymmetricKeys(read("proc/keys")) }),
		appraises:   appraises(read("proc/cmdline")),
		blacklisted: blacklist(read("proc/cmdline")),
	}
}

// asymmetricKeys reads /proc/keys (proc_keys(5)), whose lines for keys that sign modules are
//
//	1ae5a7c8 I------ 1 perm 1f030000 0 0 asymmetri NAME: HEX OF ITS ID: X509.rsa bb419ea1 []
func asymmetricKeys(text string) (keys []string) {
	for line := range strings.Lines(text) {
		if _, description, ok := strings.Cut(line, " asymmetri "); ok {
			keys = append(keys, strings.TrimSpace(description))
		}
	}
	return keys
}

// blacklist reads module_blacklist=a,b of a kernel's command line; of several the last counts, as for any parameter. Names
// are compared as they are, so that one with - never fits (blacklisted in kernel/module/main.c).
func blacklist(cmdline string) (names []string) {
	for _, word := range splitParams(cmdline) {
		if name, value, ok := strings.Cut(word, "="); ok && ko.NormalizeName(name) == "module_blacklist" {
			names = strings.Split(value, ",")
		}
	}
	return names
}

// appraises reads ima_policy=A|B and ima_appraise= of a kernel's command line: Documentation/admin-guide/kernel-parameters.txt.
func appraises(cmdline string) (appraised bool) {
	for _, word := range splitParams(cmdline) {
		switch name, value, _ := strings.Cut(word, "="); name {
		case "ima_policy":
			appraised = appraised || slices.Contains(strings.FieldsFunc(value, func(r rune) bool { return r == '|' || r == ' ' }), "secure_boot")
		case "ima_appraise":
			if value != "enforce" {
				return false
			}
		}
	}
	return appraised
}

// knows reports whether the kernel has the key of a signature, and whether this user may know. A key shows itself by the
// name of its owner and its key id, and not by the serial that a signature names: a signature is taken for known when its
// key id or the name of its issuer is there. That is too kind to a stranger of the same name, and never too hard.
// Of an unsigned file there is no key to know.
func (p *policy) knows(s *ko.Signature) (known, visible bool) {
	if s == nil {
		return false, true
	}
	id := strings.ToLower(strings.ReplaceAll(s.KeyID, ":", ""))
	const shortest = 16 // hex digits of an id that cannot be there by chance
	keys := p.keys()
	for _, key := range keys {
		if s.Signer != "" && strings.HasPrefix(key, s.Signer+": ") || len(id) >= shortest && strings.Contains(key, id) {
			return true, true
		}
	}
	return false, len(keys) > 0
}

func (p *policy) blacklists(module string) bool {
	return p != nil && slices.Contains(p.blacklisted, module)
}
