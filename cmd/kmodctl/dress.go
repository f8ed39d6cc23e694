package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"

	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// form is how a module is to be installed.
type form struct {
	signed      bool
	signer      string // fingerprint of the certificate; "" while there is no key yet
	compression string // "", gzip, xz or zstd
}

// dresser knows in which form modules are installed, and makes it. What it needs to know is read once for a command.
type dresser struct {
	sign     signConfig
	store    keys.Store
	compress string // of the configuration
	enforced bool   // this machine takes signed modules only
	asked    bool   // the user asks for signatures: whatever the configuration says

	mu     sync.Mutex // several kernels are served at once
	key    *keys.Key  // that signs; nil while there is none
	signer keys.Signer
	closed error             // why the key cannot be opened
	packed map[string]string // compression by kernel release
}

// compressAuto is the compression of the kernel's own modules.
const compressAuto = "auto"

// compressFault says that a value of compress means nothing, "" if it does.
func compressFault(value string) string {
	if slices.Contains([]string{"", compressAuto, "none", "xz", "zstd", "gzip"}, value) {
		return ""
	}
	return fmt.Sprintf("compress: %q is not auto, none, xz, zstd or gzip", value)
}

// dresses returns the command's dresser.
func (j *job) dresses(ctx context.Context) (*dresser, error) {
	j.dressing.Do(func() { j.dresser, j.dresserErr = j.newDresser(ctx) })
	return j.dresser, j.dresserErr
}

func (j *job) newDresser(ctx context.Context) (*dresser, error) {
	conf, err := j.configuration()
	if err != nil {
		return nil, err
	}
	d := &dresser{compress: cmp.Or(conf.Compress, compressAuto), asked: j.signAll, packed: map[string]string{}}
	if d.sign, err = j.framed(ctx, conf.Sign); err != nil {
		return nil, err
	}
	d.store = d.sign.store(j.env)
	if err := j.promote(ctx, d.store); err != nil {
		return nil, err
	}
	d.enforced = j.enforcesSignatures()
	if d.sign.Mode == signNever && !d.asked {
		return d, nil
	}
	switch key, err := d.store.Active(); {
	case err == nil:
		d.key = &key
	case !errors.Is(err, keys.ErrNoKey):
		d.closed = fmt.Errorf("find the signing key: %w", err)
	}
	return d, nil
}

// enforcesSignatures reports whether this machine takes signed modules only. The running kernel says so, which locks itself down under
// Secure Boot; the firmware, whose variables are slow to read, is asked where that one cannot be. Of a folder nobody knows.
func (e *env) enforcesSignatures() bool {
	if !e.root.IsHost() {
		return false
	}
	at := e.root.Enforcement()
	if at.Enforced() || at.Lockdown != "" {
		return at.SignedOnly()
	}
	return efi.ReadState(e.root).Enforced() == efi.On
}

// signs reports whether the modules of a package get a signature.
func (d *dresser) signs(pkg string) bool {
	return d.asked || d.configured(pkg)
}

// configured is signs by the configuration alone.
func (d *dresser) configured(pkg string) bool {
	if len(d.sign.Packages) > 0 && !slices.Contains(d.sign.Packages, pkg) {
		return false
	}
	return d.sign.Mode == signAlways || d.sign.Mode == signAuto && (d.enforced || d.key != nil || d.closed != nil)
}

// form is how the modules of a package are installed for a kernel.
func (d *dresser) form(pkg string, k kernel.Release) (f form, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f.signed = d.signs(pkg)
	if f.signed && d.key != nil {
		f.signer = d.key.Fingerprint()
	}
	if known, ok := d.packed[k.Name]; ok {
		f.compression = known
		return f, nil
	}
	switch d.compress {
	case compressAuto:
		own, err := k.OwnModule()
		if err != nil {
			return f, err
		}
		f.compression, _ = ko.CompressionOf(own)
	case "none":
	default:
		f.compression = d.compress
	}
	d.packed[k.Name] = f.compression
	return f, nil
}

// has reports whether an installed file is in a form, or needs not be brought into it. A signature that is there stays; of a
// file that another program has signed nobody here knows better.
func (f form) has(i registry.Install) bool {
	switch {
	case i.Signer == registry.SignerUnknown:
		return true
	case f.signed && (i.Signer == "" || i.Signer != f.signer):
		return false
	}
	return i.Compression() == f.compression
}

// refusedKey is a signature that a kernel could not verify.
type refusedKey struct {
	release, why string
	hash         string
}

func (r refusedKey) Error() string { return fmt.Sprintf("sign for %s: %s", r.release, r.why) }

// remedy is what every kernel can verify.
func (r refusedKey) remedy() string {
	if r.hash != signHash {
		return fmt.Sprintf("say hash = %q in [sign] of %s", signHash, configFile)
	}
	return "sign with a key of RSA: kmodctl key rotate --now"
}

// verifiable makes sure that a kernel can verify what would be signed for it, as far as its configuration is known.
func (d *dresser) verifiable(k kernel.Release, want form) error {
	key := d.known()
	if !want.signed {
		return nil
	}
	if key.Cert == nil { // it will be one of RSA
		key.Cert = &x509.Certificate{}
	}
	why, err := key.Refusal(k, d.sign.Hash)
	if err != nil || why == "" {
		return err
	}
	return refusedKey{k.Name, why, d.sign.Hash}
}

// open returns what signs, and makes a key where there is none; a key that cannot be opened is asked for once.
func (d *dresser) open(ctx context.Context, e *env) (keys.Signer, keys.Key, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed != nil:
		return nil, keys.Key{}, d.closed
	case d.signer != nil:
		return d.signer, *d.key, nil
	case d.key == nil:
		key, made, err := d.store.Ensure(ctx, keys.New{TakeOver: true})
		if err != nil {
			return nil, key, err
		}
		switch {
		case key.Origin != "" && made:
			e.changed("took over signing key %s from %s; whether this machine trusts it: kmodctl secureboot", key.Name, key.Origin)
		case made:
			e.changed("made signing key %s; to have this machine trust it: kmodctl key enroll", key.Name)
		}
		d.key = &key
	}
	d.signer, d.closed = d.store.Signer(*d.key, e.passphrase("key "+d.key.Name))
	return d.signer, *d.key, d.closed
}

// known is the key that signs; it has no certificate while there is none.
func (d *dresser) known() keys.Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.key == nil {
		return keys.Key{}
	}
	return *d.key
}
