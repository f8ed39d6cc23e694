package registry

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
)

// packedDress compresses the modules of an artifact.
func packedDress(ctx context.Context, r *Registry, a Artifact, compression string) (Dress, error) {
	dress := Dress{}
	for _, m := range a.Modules {
		own, err := r.undressed(m.Digest)
		if err != nil {
			return nil, err
		}
		file, err := ko.Compress(own.image, compression)
		if err != nil {
			return nil, err
		}
		if dress[m.Digest], err = r.PutDressed(ctx, m, file, ""); err != nil {
			return nil, err
		}
	}
	return dress, nil
}

// signing is a key and its certificate.
type signing struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newSigning(t *testing.T, name string) signing {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return signing{key, cert}
}

func (s signing) name() string { return hexOf(s.cert.Raw) }

// dress signs the modules of an artifact and compresses them.
func (s signing) dress(t *testing.T, r *Registry, a Artifact, compression string) Dress {
	t.Helper()
	dress := Dress{}
	for _, m := range a.Modules {
		own, err := r.undressed(m.Digest)
		must(t, err)
		signed, err := modsig.Sign(own.image, s.key, s.cert, crypto.SHA256)
		must(t, err)
		file, err := ko.Compress(signed, compression)
		must(t, err)
		dress[m.Digest], err = r.PutDressed(t.Context(), m, file, s.name())
		must(t, err)
	}
	return dress
}

// files lists what is in our folder.
func files(t *testing.T, r *Registry) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(string(r.root), modulesPath(release), ourDir))
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// What is installed can be signed and compressed: the old file goes in the same change, and depmod, the rows, verify and
// gc know of one only. Nothing is written when it is that already.
func TestDress(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	a := mustPut(t, r, "net", "1", "net=1", "net_extra=1")
	old, next := newSigning(t, "old"), newSigning(t, "next")
	for _, step := range []struct {
		dress       Dress
		file        string
		signer      string
		compression string
	}{
		{nil, "net.ko", "", ""},
		{old.dress(t, r, a, ""), "net.ko", old.name(), ""},
		{old.dress(t, r, a, "xz"), "net.ko.xz", old.name(), "xz"},
		{next.dress(t, r, a, "xz"), "net.ko.xz", next.name(), "xz"},
		{next.dress(t, r, a, "zstd"), "net.ko.zst", next.name(), "zstd"},
		{nil, "net.ko", "", ""},
	} {
		_, err := r.Install(t.Context(), release, []Artifact{a}, step.dress)
		must(t, err)
		equal(t, "installed", installed(t, r, root), []string{"net=1", "net_extra=1"})
		equal(t, "files", files(t, r), []string{strings.Replace(step.file, "net", "net-extra", 1), step.file})
		for _, i := range mustInstalls(t, r) {
			if i.Signer != step.signer || i.Compression() != step.compression || i.Artifact != a.Digest {
				t.Errorf("row %+v, want %s %s", i, step.signer, step.compression)
			}
		}
		isClean(t, r, root)
		before := snapshot(t, string(root))
		if res, err := r.Install(t.Context(), release, []Artifact{a}, step.dress); err != nil || len(res.Changes) > 0 || res.Depmod {
			t.Errorf("the same again: %+v, %v", res, err)
		}
		if snapshot(t, string(root)) != before {
			t.Error("the same again wrote something")
		}
	}
}

// The installed form is kept as long as it is installed, and no longer, and can be got back from the file.
func TestDressedBlob(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	_, _, err := r.AddSource(t.Context(), tree(t, "kmod.toml=x"), "net", "1", "x")
	must(t, err)
	a := mustPut(t, r, "net", "1", "net=1")
	key := newSigning(t, "key")
	gone := key.dress(t, r, a, "gzip")[a.Modules[0].Digest] // never installed
	dress := key.dress(t, r, a, "xz")
	blob := r.BlobPath(dress[a.Modules[0].Digest].Digest)
	_, err = r.Install(t.Context(), release, []Artifact{a}, dress)
	must(t, err)

	_, err = r.CollectGarbage(t.Context(), time.Now(), 0)
	must(t, err)
	if _, err := os.Stat(r.BlobPath(gone.Digest)); err == nil {
		t.Error("gc left a form that is not installed")
	}
	isClean(t, r, root)
	must(t, os.Remove(blob))
	drifts, err := r.Verify(t.Context(), root)
	must(t, err)
	if len(drifts) != 1 || drifts[0].Kind != DriftMissing || drifts[0].Object != ObjectBlob || drifts[0].Module != "net" {
		t.Fatalf("verify without the blob: %+v", drifts)
	}
	cure, err := r.Remedy(t.Context(), root, drifts[0])
	must(t, err)
	if cure == nil {
		t.Fatal("no remedy")
	}
	must(t, cure.Do())
	isClean(t, r, root)
	other := key.dress(t, r, a, "zstd")
	_, err = r.Install(t.Context(), release, []Artifact{a}, other)
	must(t, err)
	isClean(t, r, root)
	if _, err := os.Stat(blob); err == nil {
		t.Error("the form that was installed before was left")
	}
	_, err = r.Uninstall(t.Context(), release, []string{"net"})
	must(t, err)
	if _, err := os.Stat(r.BlobPath(other[a.Modules[0].Digest].Digest)); err == nil {
		t.Error("the form that was uninstalled was left")
	}
	_, err = r.Remove(t.Context(), "net", "1")
	must(t, err)
	if left, err := readNames(r.tree, blobDir); err != nil || len(left) > 0 {
		t.Errorf("blobs left: %q, %v", left, err)
	}
}

// Another module, or one that is signed though nobody is said to have signed it, is no installed form.
func TestPutDressedRefuses(t *testing.T) {
	r := writer(t, t.TempDir(), newRoot(t))
	a, b := mustPut(t, r, "net", "1", "net=1"), mustPut(t, r, "other", "1", "net=2")
	own, err := r.undressed(a.Modules[0].Digest)
	must(t, err)
	key := newSigning(t, "key")
	signed, err := modsig.Sign(own.image, key.key, key.cert, crypto.SHA256)
	must(t, err)
	for name, c := range map[string]struct {
		m      Module
		file   []byte
		signer string
	}{
		"another module":     {b.Modules[0], signed, key.name()},
		"signed unasked":     {a.Modules[0], signed, ""},
		"not signed":         {a.Modules[0], own.image, key.name()},
		"damaged signature":  {a.Modules[0], append(own.image, modsig.Magic...), key.name()},
		"damaged compressed": {a.Modules[0], []byte("\x1f\x8b\x08"), ""},
		"no such module":     {Module{File: "x.ko", Digest: strings.Repeat("0", 64)}, signed, key.name()},
	} {
		if d, err := r.PutDressed(t.Context(), c.m, c.file, c.signer); err == nil {
			t.Errorf("%s was taken: %+v", name, d)
		}
	}
}

// A rebuild knows its modules in any form. Where the rows are lost, nobody knows who signed them; of a change
// that was cut off, one form is left.
func TestRebuildDressed(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	a := mustPut(t, r, "net", "1", "net=1", "net_extra=1")
	key := newSigning(t, "key")
	_, err := r.Install(t.Context(), release, []Artifact{a}, key.dress(t, r, a, "xz"))
	must(t, err)
	rows := mustInstalls(t, r)
	must(t, r.Close())
	for _, suffix := range dbSuffixes {
		must(t, os.Remove(filepath.Join(dir, dbFile+suffix)))
	}
	noManifest := func(map[string]string) (string, string, string, error) { return "", "", "", os.ErrNotExist }
	_, err = Rebuild(t.Context(), dir, root, WriterOptions{}, noManifest)
	must(t, err)
	r = writer(t, dir, root)
	again := mustInstalls(t, r)
	if len(again) != len(rows) {
		t.Fatalf("rows: %+v", again)
	}
	for n, i := range again {
		rows[n].At, rows[n].Signer = i.At, SignerUnknown
		if i != rows[n] {
			t.Errorf("row %+v, want %+v", i, rows[n])
		}
	}
	isClean(t, r, root)
	must(t, r.Close())

	// Two forms of one module, as if killed before the old one went.
	ours := filepath.Join(string(root), modulesPath(release), ourDir)
	must(t, os.WriteFile(filepath.Join(ours, "net.ko"), mustObject(t, "1"), 0o644))
	must(t, os.Remove(filepath.Join(dir, dbFile)))
	_, err = Rebuild(t.Context(), dir, root, WriterOptions{}, noManifest)
	must(t, err)
	r = writer(t, dir, root)
	if got := files(t, r); len(got) != 2 {
		t.Errorf("files %q", got)
	}
	equal(t, "installed", installed(t, r, root), []string{"net=1", "net_extra=1"})
	isClean(t, r, root)
}
