package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"syscall"

	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/registry"
)

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
	if errors.As(err, new(cannotSign)) && ctx.Err() == nil && d.canWait(rows) {
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

// cannotSign is a key that cannot be opened, or does not sign.
type cannotSign struct{ error }

func (c cannotSign) Unwrap() error { return c.error }

// diskFails tells errors of a disk from those of keys and of single blobs.
func diskFails(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && errno != syscall.ENOENT
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
		if dressed.Digest != "" {
			dress[m.Digest] = dressed
		}
	}
	return dress, nil
}

// dressModule makes the form of one module; it is empty where that is the artifact's own file. row is how it is
// installed, empty if it is not.
func (j *job) dressModule(ctx context.Context, d *dresser, want form, m registry.Module, row registry.Install) (registry.Dressed, error) {
	if d.asked && row.Signer == registry.SignerUnknown && j.signedBy(row.Digest, d.known()) { // its row was lost
		row.Signer = want.signer
	}
	if row.Digest != "" && want.has(row) && (!d.asked || row.Signer == want.signer) && j.readable(row.Digest) {
		return registry.Dressed{Digest: row.Digest, Size: row.Size, Signer: row.Signer, Compression: row.Compression()}, nil
	}
	if !want.signed && want.compression == "" && row.Signer == "" && !j.ownSignature(m) {
		return registry.Dressed{}, nil
	}
	file, signer, err := j.signed(ctx, d, want, m, row)
	if err != nil {
		return registry.Dressed{}, err
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
		if err == nil {
			file, err = with.Sign(ctx, file, d.sign.Hash)
		}
		switch {
		case err == nil:
			return file, key.Fingerprint(), nil
		case diskFails(err):
			return nil, "", err
		}
		return nil, "", cannotSign{err}
	case row.Signer != "": // what has a signature keeps it
		file, err = j.unpacked(row.Digest)
		return file, row.Signer, err
	}
	return file, "", nil
}

// ownSignature reports whether an artifact's own file is signed: it was adopted so. One that is not there is not.
func (j *job) ownSignature(m registry.Module) bool {
	f, err := os.Open(j.reg.BlobPath(m.Digest))
	if err != nil {
		return false
	}
	defer f.Close()
	end := make([]byte, len(modsig.Magic))
	_, err = f.Seek(-int64(len(end)), io.SeekEnd)
	if err == nil {
		_, err = io.ReadFull(f, end)
	}
	return err == nil && string(end) == modsig.Magic
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
		if err == nil {
			maps.Copy(all, dress)
			left = append(left, art)
			continue
		}
		j.begun()
		j.fail(err)
		if diskFails(err) { // the others would meet it too
			for _, art := range due {
				j.installed(art, "failed", err.Error())
			}
			return nil, nil, nil
		}
		j.installed(art, "failed", err.Error())
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
