package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
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
	j.dressing.Do(func() { j.dresser, j.dresserErr = j.newDresser(ctx, j.signAll) })
	return j.dresser, j.dresserErr
}

func (e *env) newDresser(ctx context.Context, asked bool) (*dresser, error) {
	conf, err := e.readConfig()
	if err != nil {
		return nil, err
	}
	d := &dresser{compress: cmp.Or(conf.Compress, compressAuto), asked: asked, packed: map[string]string{}}
	if d.sign, err = e.signConfig(ctx); err != nil {
		return nil, err
	}
	d.store = d.sign.store(e)
	d.enforced = e.enforcesSignatures()
	if d.sign.Mode == signNever && !asked {
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

// enforcesSignatures reports whether the machine takes signed modules only: by Secure Boot, lockdown or module.sig_enforce.
func (e *env) enforcesSignatures() bool {
	lockdown, _ := e.root.ReadFile("/sys/kernel/security/lockdown")
	enforce, _ := e.root.ReadFile("/sys/module/module/parameters/sig_enforce")
	return efi.ReadState(e.root).Enforced() == efi.On || strings.HasPrefix(string(enforce), "Y") ||
		bytes.Contains(lockdown, []byte("[integrity]")) || bytes.Contains(lockdown, []byte("[confidentiality]"))
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
	case f.signed && i.Signer != f.signer:
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

// dress makes the installed forms of an artifact's modules.
func (j *job) dress(ctx context.Context, k kernel.Release, art registry.Artifact) (registry.Dress, error) {
	d, err := j.dresses(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := j.reg.Installs(art.Package)
	if err != nil {
		return nil, err
	}
	rows = slices.DeleteFunc(rows, func(i registry.Install) bool { return i.Release != k.Name })
	want, err := d.form(art.Package, k)
	if err != nil {
		return nil, err
	}
	if err := d.verifiable(k, want); err != nil {
		return nil, err
	}
	dress, err := j.dressAll(ctx, d, want, art, rows)
	if err != nil && ctx.Err() == nil && want.signed && d.canWait(rows) {
		j.changed("note: %s %s for %s is installed unsigned, until kmodctl sign %s: %v", art.Package, art.Version, k.Name, art.Package, err)
		want.signed = false
		dress, err = j.dressAll(ctx, d, want, art, rows)
	}
	if err != nil {
		return nil, fmt.Errorf("install %s@%s for %s: %w", art.Package, art.Version, k.Name, err)
	}
	return dress, nil
}

// dressFor is dress for the artifact's own kernel.
func (j *job) dressFor(ctx context.Context, art registry.Artifact) (registry.Dress, error) {
	k, err := kernel.Get(j.root, art.Release)
	var gone *kernel.NotFoundError
	if err != nil && !errors.As(err, &gone) {
		return nil, err
	}
	k.Name = art.Release
	return j.dress(ctx, k, art)
}

// canWait reports whether modules may be installed unsigned when they cannot be signed: where the machine takes them so, the driver
// comes first. What is signed already stays as it is.
func (d *dresser) canWait(rows []registry.Install) bool {
	return !d.asked && !d.enforced && d.sign.Mode == signAuto && !slices.ContainsFunc(rows, func(i registry.Install) bool { return i.Signer != "" })
}

func (j *job) dressAll(ctx context.Context, d *dresser, want form, art registry.Artifact, rows []registry.Install) (registry.Dress, error) {
	dress := registry.Dress{}
	for _, m := range art.Modules {
		var row registry.Install // of this very module, if it is installed
		if i := slices.IndexFunc(rows, func(i registry.Install) bool { return i.Module == m.Name && i.Artifact == art.Digest }); i >= 0 {
			row = rows[i]
		}
		dressed, err := j.dressModule(ctx, d, want, m, row)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.File, err)
		}
		dress[m.Digest] = dressed
	}
	return dress, nil
}

// dressModule makes the form of one module. row is how it is installed, empty if it is not.
func (j *job) dressModule(ctx context.Context, d *dresser, want form, m registry.Module, row registry.Install) (registry.Dressed, error) {
	if d.asked && row.Signer == registry.SignerUnknown && j.signedBy(row.Digest, d.known()) { // its row was lost
		row.Signer = want.signer
	}
	if row.Digest != "" && want.has(row) && (!d.asked || row.Signer == want.signer) && j.readable(row.Digest) {
		return registry.Dressed{Digest: row.Digest, Size: row.Size, Signer: row.Signer, Compression: row.Compression()}, nil
	}
	file, signer, err := j.signed(ctx, d, want, m, row)
	if err != nil {
		return registry.Dressed{}, err
	}
	if signer == "" && want.compression == "" {
		return registry.Dressed{Digest: m.Digest, Size: int64(len(file))}, nil
	}
	packed, err := ko.Compress(file, want.compression)
	if err != nil {
		return registry.Dressed{}, err
	}
	return j.reg.PutDressed(ctx, m, packed, signer)
}

// signed returns a module with the signature that it is to have, before it is compressed, and who made that.
func (j *job) signed(ctx context.Context, d *dresser, want form, m registry.Module, row registry.Install) (file []byte, signer string, err error) {
	if file, err = j.content(m.Digest); err != nil {
		return nil, "", err
	}
	_, own, err := modsig.Split(file)
	switch {
	case err != nil:
		return nil, "", err
	case own != nil && !d.asked: // adopted: it is signed as this machine did before
		return file, registry.SignerUnknown, nil
	case want.signed:
		with, key, err := d.open(ctx, j.env)
		if err != nil {
			return nil, "", err
		}
		file, err = with.Sign(ctx, file, d.sign.Hash)
		return file, key.Fingerprint(), err
	case row.Signer != "": // what has a signature keeps it
		file, err = j.unpacked(row.Digest)
		return file, row.Signer, err
	}
	return file, "", nil
}

// checkForms makes sure, before anything is changed, that the kernels can verify what would be signed for them.
func (j *job) checkForms(ctx context.Context, choices []choice) error {
	if os.Getuid() != 0 && j.root.IsHost() { // nothing is installed then
		return nil
	}
	d, err := j.dresses(ctx)
	if err != nil {
		return err
	}
	for _, c := range choices {
		for _, k := range c.kernels {
			if err := d.verifiable(k, form{signed: d.signs(c.Name)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// dressDue makes the installed forms of all that is due for a kernel. What cannot be signed is reported and left out: what
// is installed of it stays.
func (j *job) dressDue(ctx context.Context, k kernel.Release, due []registry.Artifact) (registry.Dress, []registry.Artifact, error) {
	all := registry.Dress{}
	var left []registry.Artifact
	for _, art := range due {
		dress, err := j.dress(ctx, k, art)
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err != nil {
			j.begun()
			j.fail(err)
			j.installed(art, "failed", err.Error())
			continue
		}
		maps.Copy(all, dress)
		left = append(left, art)
	}
	return all, left, nil
}

// formOf says in which form an artifact was installed: ", signed by mok1, xz"; "" when it is as it was built.
func (j *job) formOf(art registry.Artifact, dress registry.Dress) (text string) {
	d := dress[art.Modules[0].Digest] // all are alike
	switch key := j.dresser.known(); {
	case key.Cert != nil && d.Signer == key.Fingerprint():
		text = ", signed by " + key.Name
	case d.Signer != "":
		text = ", signed"
	}
	if d.Compression != "" {
		text += ", " + d.Compression
	}
	return text
}

// tellUnsigned says of an artifact that the machine will refuse its modules.
func (j *job) tellUnsigned(art registry.Artifact, dress registry.Dress) {
	unsigned := func(m registry.Module) bool { return dress[m.Digest].Signer == "" }
	if d := j.dresser; d.enforced && slices.ContainsFunc(art.Modules, unsigned) {
		j.changed("note: %s %s for %s is not signed, and this machine takes signed modules only: kmodctl sign %s", art.Package, art.Version, art.Release, art.Package)
	}
}

// readable reports whether a blob is there and whole.
func (j *job) readable(digest string) bool {
	_, err := j.content(digest)
	return err == nil
}

// unpacked is the content of a blob without compression.
func (j *job) unpacked(digest string) ([]byte, error) {
	file, err := j.content(digest)
	if err != nil {
		return nil, err
	}
	plain, _, err := ko.Decompress(file)
	return plain, err
}

// signedBy reports whether a file that the registry has is signed by a key.
func (j *job) signedBy(digest string, key keys.Key) bool {
	file, err := j.unpacked(digest)
	if err != nil || key.Cert == nil {
		return false
	}
	image, signature, err := modsig.Split(file)
	if err != nil || signature == nil {
		return false
	}
	_, err = signature.Verify(image, []*x509.Certificate{key.Cert})
	return err == nil
}
