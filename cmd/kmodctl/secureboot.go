package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/loader"
)

func cmdSecureBoot(e *env) *cli.Command {
	return &cli.Command{
		Name:  "secureboot",
		Usage: "tell whether kernels here take signed modules only, which keys they trust, what will load, and the next step",
		Description: examples("One page: the firmware and its lists of keys, each kernel, the kernel's keyrings, the signing keys of this machine,\n"+
			"each installed module, and what to type next. What this user may not read is said; root may read all.",
			"kmodctl secureboot", "kmodctl secureboot --json"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			s, err := e.secureBoot(c.Context)
			if err != nil {
				return err
			}
			if e.json {
				return e.document("secureboot", s)
			}
			return e.printSecureBoot(s)
		},
	}
}

// Whether something is so.
const (
	yes     = "yes"
	no      = "no"
	unknown = "unknown"
)

// secureBootFacts is the document of secureboot.
type secureBootFacts struct {
	Firmware firmwareFacts  `json:"firmware"`
	Kernels  []kernelTrust  `json:"kernels"`
	Keyrings []keyringFacts `json:"keyrings"`
	Keys     []keyTrust     `json:"keys"`
	Modules  []moduleTrust  `json:"modules"`
	Next     []nextStep     `json:"next"`
	Unread   []string       `json:"unread,omitempty"` // what is not known, and why
}

// firmwareFacts is what firmware and shim say.
type firmwareFacts struct {
	UEFI       bool        `json:"uefi"`
	SecureBoot efi.Switch  `json:"secure_boot"`
	SetupMode  efi.Switch  `json:"setup_mode"`
	ShimOff    bool        `json:"shim_off,omitempty"`
	Enforced   efi.Switch  `json:"enforced"`
	Lists      []listFacts `json:"lists,omitempty"`
}

// listFacts is one list of certificates and hashes.
type listFacts struct {
	Name         string     `json:"name"`
	Certificates []certName `json:"certificates,omitempty"`
	Hashes       int        `json:"hashes,omitempty"`
	Error        string     `json:"error,omitempty"`
}

type certName struct {
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"`
}

// kernelTrust is what a kernel takes.
type kernelTrust struct {
	Release    string `json:"release"`
	Running    bool   `json:"running,omitempty"`
	SignedOnly string `json:"signed_only"` // yes, no, unknown
	Why        string `json:"why"`
	SigEnforce bool   `json:"sig_enforce,omitempty"` // of the running one
	Lockdown   string `json:"lockdown,omitempty"`    // of the running one: none, integrity, confidentiality
}

// keyringFacts is one of the running kernel's keyrings.
type keyringFacts struct {
	Name  string   `json:"name"`
	Keys  []string `json:"keys"`
	Error string   `json:"error,omitempty"`
}

// keyTrust is where one of our keys stands.
type keyTrust struct {
	Name    string `json:"name"`
	State   string `json:"state"` // active, next, old
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"`
	Trust   string `json:"trust"` // enrolled, pending, absent, leaving, revoked
	Expired bool   `json:"expired,omitempty"`
	efi.Enrolment
}

// nextStep is one thing to do.
type nextStep struct {
	Why string `json:"why"`
	Try string `json:"try,omitempty"`
}

// secureBoot gathers all that this user may know.
func (e *env) secureBoot(ctx context.Context) (secureBootFacts, error) {
	t, err := e.trust(ctx)
	if err != nil {
		return secureBootFacts{}, err
	}
	f := secureBootFacts{Firmware: firmwareOf(t.firmware), Kernels: orEmpty(t.kernels), Keys: orEmpty(t.keys), Keyrings: []keyringFacts{}}
	for _, err := range t.firmware.Errors {
		f.Unread = append(f.Unread, err.Error())
	}
	f.Unread = append(f.Unread, t.unread...)
	rings, err := loader.Keyrings(e.root)
	if err != nil {
		f.Unread = append(f.Unread, err.Error())
	} else if len(rings) == 0 && e.root.IsHost() {
		f.Unread = append(f.Unread, "the kernel's keyrings: only root may see them")
	}
	for _, r := range rings {
		facts := keyringFacts{Name: r.Name, Keys: orEmpty(r.Keys)}
		if r.Err != nil {
			facts.Error = r.Err.Error()
		}
		f.Keyrings = append(f.Keyrings, facts)
	}
	if f.Modules, err = t.modules(ctx); err != nil {
		return f, err
	}
	f.Next = t.next(f.Modules)
	return f, nil
}

func firmwareOf(s efi.State) firmwareFacts {
	f := firmwareFacts{UEFI: s.UEFI, SecureBoot: s.SecureBoot, SetupMode: s.SetupMode, ShimOff: s.ShimOff, Enforced: s.Enforced()}
	for _, l := range s.Lists {
		facts := listFacts{Name: l.Name}
		for _, cert := range l.Certificates() {
			facts.Certificates = append(facts.Certificates, nameOf(cert))
		}
		facts.Hashes = len(l.Entries) - len(facts.Certificates)
		if l.Err != nil {
			facts.Error = l.Err.Error()
		}
		f.Lists = append(f.Lists, facts)
	}
	return f
}

func nameOf(cert *x509.Certificate) certName {
	return certName{cert.Subject.String(), keys.Key{Cert: cert}.Fingerprint()}
}

// trust is what decides about modules: firmware, kernels, our keys.
type trust struct {
	*env
	firmware efi.State
	kernels  []kernelTrust
	releases []kernel.Release
	store    []keys.Key
	keys     []keyTrust
	unread   []string
	builtin  map[string][]*x509.Certificate // by release, of the images that were opened
}

func (e *env) trust(ctx context.Context) (*trust, error) {
	t := &trust{env: e, firmware: efi.ReadState(e.root), builtin: map[string][]*x509.Certificate{}}
	var err error
	if t.releases, err = kernel.Find(e.root); err != nil {
		return nil, err
	}
	for _, k := range t.releases {
		if k.Modules != "" || k.Running {
			t.kernels = append(t.kernels, t.kernelTrust(k))
		}
	}
	conf, err := e.signConfig(ctx)
	if err != nil {
		return nil, err
	}
	t.store, err = conf.store(e).List()
	switch {
	case errors.Is(err, fs.ErrPermission):
		t.unread = append(t.unread, keys.Folder+": only root may see the signing keys")
	case err != nil:
		t.unread = append(t.unread, err.Error())
	}
	for _, key := range t.store {
		t.keys = append(t.keys, t.keyTrust(key))
	}
	return t, nil
}

// kernelTrust says whether a kernel takes signed modules only.
func (t *trust) kernelTrust(k kernel.Release) kernelTrust {
	kt := kernelTrust{Release: k.Name, Running: k.Running, SignedOnly: no, Why: "it takes unsigned modules, and notes that it did"}
	if k.Running {
		at := t.root.Enforcement()
		kt.SigEnforce, kt.Lockdown = at.Enforced(), at.Lockdown
		switch {
		case at.Enforced() && at.Locked():
			kt.SignedOnly, kt.Why = yes, "module.sig_enforce, and lockdown ("+kt.Lockdown+")"
		case at.Enforced():
			kt.SignedOnly, kt.Why = yes, "module.sig_enforce"
		case at.Locked():
			kt.SignedOnly, kt.Why = yes, "lockdown ("+kt.Lockdown+")"
		}
		return kt
	}
	switch enforced := t.firmware.Enforced(); {
	case k.Option("MODULE_SIG_FORCE") == "y":
		kt.SignedOnly, kt.Why = yes, "CONFIG_MODULE_SIG_FORCE"
	case enforced == efi.Unknown:
		kt.SignedOnly, kt.Why = unknown, "whether Secure Boot is on is not known"
	case enforced == efi.Off:
	case k.Option("LOCK_DOWN_IN_EFI_SECURE_BOOT") == "y":
		kt.SignedOnly, kt.Why = yes, "Secure Boot is on, and CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT"
	case k.Option("LOCK_DOWN_IN_EFI_SECURE_BOOT") == "":
		kt.SignedOnly, kt.Why = unknown, "Secure Boot is on, and the kernel's configuration is not here"
	}
	return kt
}

// Where one of our keys stands in the firmware.
const (
	trustEnrolled = "enrolled"
	trustPending  = "pending" // asked for: a boot decides
	trustAbsent   = "absent"
	trustLeaving  = "leaving" // enrolled, and asked to be deleted
	trustRevoked  = "revoked"
)

func (t *trust) keyTrust(key keys.Key) keyTrust {
	at := t.firmware.EnrolmentOf(key.Cert)
	name := nameOf(key.Cert)
	k := keyTrust{Name: key.Name, State: key.State, Subject: name.Subject, SHA256: name.SHA256, Trust: trustAbsent, Enrolment: at, Expired: time.Now().After(key.Cert.NotAfter)}
	switch {
	case len(at.Revoked) > 0:
		k.Trust = trustRevoked
	case len(at.In) > 0 && at.Leaving:
		k.Trust = trustLeaving
	case len(at.In) > 0:
		k.Trust = trustEnrolled
	case at.Pending:
		k.Trust = trustPending
	}
	return k
}

// active is our key that signs, nil if there is none.
func (t *trust) active() *keyTrust {
	if i := slices.IndexFunc(t.keys, func(k keyTrust) bool { return k.State == keys.StateActive }); i >= 0 {
		return &t.keys[i]
	}
	return nil
}

// signedOnly are the kernels that take signed modules only, or may do so.
func (t *trust) signedOnly() (names []string) {
	for _, k := range t.kernels {
		if k.SignedOnly != no {
			names = append(names, k.Release)
		}
	}
	return names
}

// rebootStep is what to do when a key is asked for.
const rebootStep = "reboot"

// next is what to do, in order; nothing when nothing is amiss.
func (t *trust) next(modules []moduleTrust) (steps []nextStep) {
	only := t.signedOnly()
	if len(only) == 0 {
		return []nextStep{}
	}
	kernels := count(len(only), "kernel") + " here " + map[bool]string{true: "takes", false: "take"}[len(only) == 1] + " signed modules only"
	if t.firmware.Enforced() == efi.On {
		kernels = "Secure Boot is on: " + kernels
	}
	key := t.active()
	switch {
	case key == nil && len(t.unread) > 0 && os.Getuid() != 0:
		return []nextStep{{kernels + ", and only root may see whether there is a key", "sudo kmodctl secureboot"}}
	case key == nil:
		return []nextStep{{kernels + ", and this machine has no signing key", t.command("key new")}, {"the firmware must learn to trust it", t.command("key enroll")}}
	case key.Trust == trustRevoked:
		return []nextStep{{"key " + key.Name + " is revoked by " + strings.Join(key.Revoked, " and "), t.command("key rotate --now")}}
	case key.Trust == trustAbsent:
		steps = append(steps, nextStep{kernels + ", and the firmware does not trust key " + key.Name, t.command("key enroll " + key.Name)})
	case key.Trust == trustPending:
		steps = append(steps, nextStep{kernels + ", and the firmware will ask about key " + key.Name + " at the next boot: its blue screen wants an answer (kmodctl key enroll prints what it asks)", rebootStep})
	}
	var unsigned []string
	for _, m := range modules {
		if m.Loads != yes && m.Signer != key.SHA256 && slices.Contains(only, m.Release) && !slices.Contains(unsigned, m.Package) {
			unsigned = append(unsigned, m.Package)
		}
	}
	for _, pkg := range unsigned {
		steps = append(steps, nextStep{pkg + " is not signed with key " + key.Name, t.command("resign " + pkg)})
	}
	return orEmpty(steps)
}

func (e *env) printSecureBoot(f secureBootFacts) error {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(e.out, "%-10s"+format+"\n", append([]any{name}, args...)...)
	}
	switch fw := f.Firmware; {
	case !fw.UEFI:
		line("firmware", "no UEFI: there is no Secure Boot")
	default:
		extra := ""
		if fw.SetupMode == efi.On {
			extra += ", in setup mode (nothing is enforced)"
		}
		if fw.ShimOff {
			extra += ", shim verifies nothing (mokutil --enable-validation ends that)"
		}
		line("firmware", "Secure Boot is %s%s", fw.SecureBoot, extra)
	}
	for _, l := range f.Firmware.Lists {
		var parts []string
		for _, c := range l.Certificates {
			parts = append(parts, c.Subject)
		}
		if l.Hashes > 0 {
			parts = append(parts, fmt.Sprintf("hashes: %d", l.Hashes))
		}
		if l.Error != "" {
			parts = append(parts, l.Error)
		}
		line("", "%s: %s", l.Name, strings.Join(parts, "; "))
	}
	for _, k := range f.Kernels {
		running := ""
		if k.Running {
			running = " (running)"
		}
		line("kernel", "%s%s: takes signed modules only: %s: %s", k.Release, running, k.SignedOnly, k.Why)
	}
	for _, r := range f.Keyrings {
		line("keyring", "%s: %s", r.Name, strings.Join(append(slices.Clone(r.Keys), r.Error), "; "))
	}
	for _, k := range f.Keys {
		where := ""
		if len(k.In)+len(k.Revoked) > 0 {
			where = " (" + strings.Join(append(slices.Clone(k.In), k.Revoked...), ", ") + ")"
		}
		if k.Expired {
			where += ", expired, which kernels do not look at"
		}
		line("key", "%s, %s: %s%s: %s", k.Name, k.State, k.Trust, where, k.Subject)
	}
	if len(f.Modules) > 0 {
		t := e.table("MODULE", "KERNEL", "SIGNED BY", "LOADS", "WHY")
		for _, m := range f.Modules {
			t.row(m.Module, m.Release, m.SignedBy, m.Loads, m.Why)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, u := range f.Unread {
		line("not read", "%s", u)
	}
	for _, n := range f.Next {
		line("next", "%s", n.Why)
		if n.Try != "" {
			line("", "%s", n.Try)
		}
	}
	if len(f.Next) == 0 {
		line("next", "nothing to do")
	}
	return nil
}
