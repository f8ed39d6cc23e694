package main

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"

	"kmodctl/internal/efi"
	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/internal/vmlinux"
)

// moduleTrust is what becomes of an installed module.
type moduleTrust struct {
	Package  string `json:"package"`
	Module   string `json:"module"`
	Release  string `json:"release"`
	Path     string `json:"path"`
	SignedBy string `json:"signed_by,omitempty"` // subject of the certificate, or what the signature says of it; "" for none
	Signer   string `json:"signer,omitempty"`    // SHA-256 of the certificate, when it is known
	Hash     string `json:"hash,omitempty"`
	Loads    string `json:"loads"` // yes, no, unknown
	Why      string `json:"why,omitempty"`
}

// modules judges all installed modules of kernels that are here.
func (t *trust) modules(ctx context.Context) ([]moduleTrust, error) {
	all := []moduleTrust{}
	reg, err := t.reader(ctx)
	if err != nil {
		return all, err
	}
	defer reg.Close()
	installs, err := reg.Installs()
	if err != nil {
		return all, err
	}
	for _, i := range installs {
		at := slices.IndexFunc(t.kernels, func(k kernelTrust) bool { return k.Release == i.Release })
		if at < 0 {
			continue
		}
		m := moduleTrust{Package: i.Package, Module: i.Module, Release: i.Release, Path: i.Path}
		file, err := t.root.ReadFile(i.Path)
		if err == nil {
			file, _, err = ko.Decompress(file)
		}
		if err != nil {
			m.Loads, m.Why = unknown, err.Error()
		} else {
			t.judge(&m, t.kernels[at], file)
		}
		all = append(all, m)
	}
	return all, nil
}

// judge says what a kernel makes of a module's signature: module_sig_check, kernel/module/signing.c.
func (t *trust) judge(m *moduleTrust, k kernelTrust, file []byte) {
	// Without a signature that it can verify, the kernel does what it does with unsigned modules.
	unverified := func(why string) {
		m.Why = why
		m.Loads = map[string]string{yes: no, no: yes, unknown: unknown}[k.SignedOnly]
	}
	image, sig, err := modsig.Split(file)
	switch {
	case err != nil:
		m.Loads, m.Why = no, "its signature is damaged: "+err.Error()
		return
	case sig == nil:
		unverified("unsigned")
		return
	}
	m.SignedBy, m.Hash = signatureName(file), sig.HashName()
	known := t.known(k.Release, sig)
	cert, err := sig.Verify(image, known)
	if i := slices.IndexFunc(known, sig.Names); i >= 0 {
		name := nameOf(known[i])
		m.SignedBy, m.Signer = name.Subject, name.SHA256
	}
	switch {
	case errors.Is(err, modsig.ErrChanged):
		m.Loads, m.Why = no, "changed after it was signed"
	case errors.Is(err, modsig.ErrUnknownKey):
		unverified("signed by a key that is not known here")
	case err != nil:
		unverified(err.Error())
	case t.trusts(k.Release, cert):
		m.Loads = yes
		if why := t.refusal(k.Release, m); why != "" {
			unverified(why)
		}
	default:
		unverified("the kernel does not trust the key that signed it")
	}
}

// signatureName is who signed, as the signature has it.
func signatureName(file []byte) string {
	info, err := ko.Read(file)
	if err != nil || info.Signature == nil {
		return ""
	}
	return info.Signature.Signer
}

// known are the certificates that a signature may be of: the firmware's, ours, and when none of them is named those in the
// kernel's image, which takes seconds to unpack.
func (t *trust) known(release string, sig *modsig.Signature) (certs []*x509.Certificate) {
	for _, l := range t.firmware.Lists {
		certs = append(certs, l.Certificates()...)
	}
	for _, key := range t.store {
		certs = append(certs, key.Cert)
	}
	if !slices.ContainsFunc(certs, sig.Names) {
		certs = append(certs, t.builtinOf(release)...)
	}
	return certs
}

// builtinOf are the certificates in a kernel's image, none when it cannot be read.
func (t *trust) builtinOf(release string) []*x509.Certificate {
	if certs, ok := t.builtin[release]; ok {
		return certs
	}
	t.builtin[release] = nil
	for _, k := range t.releases {
		if k.Name != release || k.Image == "" {
			continue
		}
		path, err := t.root.Path(k.Image)
		if err != nil {
			break
		}
		image, err := vmlinux.Open(path)
		if err != nil {
			t.unread = append(t.unread, err.Error())
			break
		}
		t.builtin[release] = image.Certificates()
		image.Close()
	}
	return t.builtin[release]
}

// trusts reports whether a kernel has a certificate among those that modules may be signed with. What is revoked it reads with
// CONFIG_SYSTEM_REVOCATION_LIST only (load_uefi.c; measured: docs/signing.md).
func (t *trust) trusts(release string, cert *x509.Certificate) bool {
	if slices.ContainsFunc(t.builtin[release], cert.Equal) {
		return true
	}
	if len(t.firmware.EnrolmentOf(cert).Revoked) > 0 && t.option(release, "SYSTEM_REVOCATION_LIST") != "n" {
		return false
	}
	return slices.ContainsFunc(t.firmware.Trusted(), func(l efi.List) bool { return l.Has(cert) })
}

// option is a value of the configuration of a kernel that is here; "" when it is not known.
func (t *trust) option(release, name string) string {
	for _, k := range t.releases {
		if k.Name == release {
			return k.Option(name)
		}
	}
	return ""
}

// refusal is why a kernel does not verify signatures of one of our keys, as far as its configuration tells.
func (t *trust) refusal(release string, m *moduleTrust) string {
	for _, key := range t.store {
		for _, k := range t.releases {
			if key.Fingerprint() == m.Signer && k.Name == release {
				why, err := key.Refusal(k, m.Hash)
				if err != nil {
					return err.Error()
				}
				return why
			}
		}
	}
	return ""
}
