package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/registry"
)

// store are the keys of a machine.
func (m machine) store() keys.Store { return keys.Open(kernel.Root(m.root)) }

// newKey gives the machine its first key, or one that follows, which signs from now on.
func (m machine) newKey(t testing.TB) keys.Key {
	t.Helper()
	key, made, err := m.store().Rotate(t.Context(), keys.New{})
	check(t, err)
	if !made {
		t.Fatal("no key was made")
	}
	if key.State == keys.StateNext {
		key, err = m.store().Activate(t.Context())
		check(t, err)
	}
	return key
}

// configure writes config.toml.
func (m machine) configure(t testing.TB, text string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(m.root, "etc/kmodctl"), 0o755))
	check(t, os.WriteFile(filepath.Join(m.root, "etc/kmodctl/config.toml"), []byte(text), 0o644))
}

// closeKey takes a private key away, until it is opened again.
func (m machine) closeKey(t testing.TB, key keys.Key) (open func()) {
	t.Helper()
	file := filepath.Join(m.root, keys.Folder, key.Name, "key.pem")
	text, err := os.ReadFile(file)
	check(t, err)
	check(t, os.WriteFile(file, []byte("on a token\n"), 0o600))
	return func() { check(t, os.WriteFile(file, text, 0o600)) }
}

// fileSignedBy is which of the keys has signed a file: its fingerprint, "" when it has no signature; a signature of none of
// them, or one that is not right, is an error.
func fileSignedBy(t testing.TB, file string, of []keys.Key) string {
	t.Helper()
	data, err := os.ReadFile(file)
	check(t, err)
	return contentSignedBy(t, file, data, of)
}

// contentSignedBy is fileSignedBy a file that has been read.
func contentSignedBy(t testing.TB, file string, data []byte, of []keys.Key) string {
	t.Helper()
	plain, _, err := ko.Decompress(data)
	check(t, err)
	image, signature, err := modsig.Split(plain)
	check(t, err)
	if signature == nil {
		return ""
	}
	var certs []*x509.Certificate
	for _, k := range of {
		certs = append(certs, k.Cert)
	}
	by, err := signature.Verify(image, certs)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return of[slices.Index(certs, by)].Fingerprint()
}

// rows are what is installed, each compared with its file.
func (m machine) rows(t testing.TB, of ...keys.Key) []registry.Install {
	t.Helper()
	reg, err := registry.Open(t.Context(), m.state())
	check(t, err)
	defer reg.Close()
	rows, err := reg.Installs()
	check(t, err)
	for _, i := range rows {
		file := filepath.Join(m.root, i.Path)
		if digest, err := fileDigest(file); err != nil || digest != i.Digest {
			t.Errorf("%s has sha256 %s, its row %s: %v", i.Path, digest, i.Digest, err)
		}
		if by := fileSignedBy(t, file, of); by != i.Signer {
			t.Errorf("%s is signed by %q, its row says %q", i.Path, by, i.Signer)
		}
	}
	return rows
}

// TestDressed: modules are installed as the key and the configuration of the day say; what changes is the installed
// file, nothing is built, and there is never a second file of a module.
func TestDressed(t *testing.T) {
	m := newMachine(t)
	m.must(t, "install", "net@1.0", "disk")
	for _, i := range m.rows(t) {
		if i.Signer != "" || i.Compression() != "" {
			t.Errorf("without key and configuration: %+v", i)
		}
	}
	first := m.newKey(t)
	expect := func(what string, by keys.Key, compression string, count int) {
		t.Helper()
		rows := m.rows(t, first, by)
		for _, i := range rows {
			want := ""
			if by.Cert != nil {
				want = by.Fingerprint()
			}
			if i.Signer != want || i.Compression() != compression {
				t.Errorf("%s: %s is signed by %q, want %q", what, i.Path, i.Signer, want)
			}
		}
		if len(rows) != count {
			t.Errorf("%s: %d rows", what, len(rows))
		}
		m.checkClean(t)
	}
	r := m.must(t, "install", "net@1.0", "disk")
	if !strings.Contains(r.stderr, "installed disk 1 for "+tortured[0]+", signed by mok1") {
		t.Errorf("stderr: %s", r.stderr)
	}
	expect("with a key", first, "", 6)
	if r := m.must(t, "install", "net@1.0", "disk"); !strings.Contains(r.stderr, "nothing to do") {
		t.Errorf("again: %s", r.stderr)
	}
	m.configure(t, "compress = \"xz\"\n")
	if r := m.must(t, "install", "net@1.0", "disk"); !strings.Contains(r.stderr, ", signed by mok1, xz") {
		t.Errorf("stderr: %s", r.stderr)
	}
	expect("xz", first, "xz", 6)

	second := m.newKey(t)
	if r := m.must(t, "resign", "--all", "--dry-run"); strings.Count(r.out, "install ") != 4 {
		t.Errorf("dry run: %s%s", r.out, r.stderr)
	}
	expect("dry run", first, "xz", 6)
	var doc struct {
		Installs []installStep `json:"installs"`
	}
	check(t, json.Unmarshal([]byte(m.must(t, "resign", "--all", "--json").out), &doc))
	if len(doc.Installs) != 4 || doc.Installs[0].Signer != second.Fingerprint() || doc.Installs[0].Compression != "xz" {
		t.Errorf("document: %+v", doc)
	}
	expect("signed again", second, "xz", 6)
	if r := m.must(t, "resign", "--all"); !strings.Contains(r.stderr, "nothing to do") {
		t.Errorf("again: %s", r.stderr)
	}

	// What is asked for is signed, whatever the configuration says, and stays so.
	m.configure(t, "compress = \"xz\"\n[sign]\nmode = \"never\"\n")
	m.must(t, "uninstall", "net")
	m.must(t, "install", "net@1.0")
	m.must(t, "sign", "net", "-k", tortured[0])
	for _, i := range m.rows(t, second) {
		if signed := i.Package == "disk" || i.Release == tortured[0]; signed != (i.Signer != "") {
			t.Errorf("signed for %s only: %+v", tortured[0], i)
		}
	}
	m.must(t, "sign", "--all")
	m.must(t, "install", "net@1.0", "disk")
	expect("all of them", second, "xz", 6)
	for _, args := range [][]string{{"sign"}, {"sign", "net", "--all"}, {"sign", "net", "x.ko"}, {"sign", "net", "--hash", "sha512"}, {"resign"}} {
		if r := m.run(t, args); r.code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, r.code, r.stderr)
		}
	}
	if r := m.run(t, []string{"sign", "net@1.1"}); r.code == 0 || !strings.Contains(r.stderr, "it is not installed") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}

	// What has a signature keeps it when no more are made; what is installed anew has none.
	m.configure(t, "compress = \"gzip\"\n[sign]\nmode = \"never\"\n")
	if r := m.run(t, []string{"install", "disk"}); r.code == 0 { // depmod of Debian is built without zlib
		t.Errorf("gzip: %s", r.stderr)
	} else if !strings.Contains(r.stderr, "depmod was built without gzip") {
		t.Errorf("gzip: %s", r.stderr)
	}
	expect("after gzip was refused", second, "xz", 6)
	m.configure(t, "compress = \"zstd\"\n[sign]\nmode = \"never\"\n")
	m.must(t, "install", "net@1.0", "disk")
	expect("zstd, signing no more", second, "zstd", 6)
	m.must(t, "uninstall", "net", "disk")
	m.must(t, "install", "disk")
	expect("installed anew", keys.Key{}, "zstd", 2)
	m.configure(t, "[sign]\npackages = [\"net\"]\n")
	m.must(t, "install", "net@1.0", "disk")
	for _, i := range m.rows(t, second) {
		if (i.Signer == second.Fingerprint()) != (i.Package == "net") || i.Compression() != "" {
			t.Errorf("only net is to be signed: %+v", i)
		}
	}
	m.checkClean(t)
	m.must(t, "install", "net@1.1")
	m.must(t, "rollback", "net")
	for _, i := range m.rows(t, second) {
		if (i.Signer != "") != (i.Package == "net") {
			t.Errorf("after a rollback: %+v", i)
		}
	}
	m.checkClean(t)
}

// TestRepairDressed: a signed module that is damaged comes back as it was, without the key as long as its blob is there.
func TestRepairDressed(t *testing.T) {
	m := newMachine(t)
	m.configure(t, "compress = \"xz\"\n")
	key := m.newKey(t)
	m.must(t, "install", "disk")
	before := m.rows(t, key)
	damage := func() { check(t, os.Truncate(filepath.Join(m.root, before[0].Path), 10)) }

	open := m.closeKey(t, key)
	damage()
	m.must(t, "repair")
	m.checkClean(t)
	open()
	damage()
	check(t, os.Remove(filepath.Join(m.state(), "blobs/sha256", before[0].Digest)))
	m.must(t, "repair")
	m.checkClean(t)
	for n, i := range m.rows(t, key) { // RSA signs the same bytes each time
		if i.Digest != before[n].Digest || i.Path != before[n].Path {
			t.Errorf("row %+v, was %+v", i, before[n])
		}
	}

	// Who signed is lost with the database; resign sees it in the file.
	for _, suffix := range []string{"", "-wal", "-shm"} {
		check(t, os.Remove(filepath.Join(m.state(), "registry.db"+suffix)))
	}
	m.must(t, "repair")
	reg, err := registry.Open(t.Context(), m.state())
	check(t, err)
	rows, err := reg.Installs()
	check(t, err)
	check(t, reg.Close())
	for n, i := range rows {
		if i.Signer != registry.SignerUnknown || i.Digest != before[n].Digest {
			t.Errorf("row %+v", i)
		}
	}
	m.must(t, "resign", "--all")
	m.checkClean(t)
	for n, i := range m.rows(t, key) {
		if i.Signer != key.Fingerprint() || i.Digest != before[n].Digest {
			t.Errorf("row %+v", i)
		}
	}
}

// TestClosedKey: what cannot be signed is installed unsigned where the machine takes that, unless signatures are required;
// and what is signed already stays as it is.
func TestClosedKey(t *testing.T) {
	m := newMachine(t)
	key := m.newKey(t)
	open := m.closeKey(t, key)
	r := m.must(t, "install", "disk")
	if !strings.Contains(r.stderr, "note: disk 1 for "+tortured[0]+" is installed unsigned, until kmodctl sign disk") {
		t.Errorf("stderr: %s", r.stderr)
	}
	if rows := m.rows(t, key); len(rows) != 2 || rows[0].Signer != "" {
		t.Errorf("rows %+v", rows)
	}
	m.must(t, "uninstall", "disk")
	m.configure(t, "[sign]\nmode = \"always\"\n")
	if r := m.run(t, []string{"install", "disk"}); r.code != exitFailed || len(m.rows(t, key)) > 0 {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	open()
	m.must(t, "install", "disk")
	m.configure(t, "compress = \"xz\"\n")
	m.closeKey(t, key)
	if r := m.run(t, []string{"install", "disk"}); r.code != exitFailed {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	for _, i := range m.rows(t, key) {
		if i.Signer != key.Fingerprint() || i.Compression() != "" {
			t.Errorf("row %+v", i)
		}
	}
	m.checkClean(t)
}

// TestFirstKey: where signatures are asked for and there is no key, one is made, and what is installed unsigned is signed.
func TestFirstKey(t *testing.T) {
	m := newMachine(t)
	m.must(t, "install", "disk")
	m.configure(t, "[sign]\nmode = \"always\"\n")
	if r := m.must(t, "install", "disk"); !strings.Contains(r.stderr, "made signing key mok1; to have this machine trust it: kmodctl key enroll") {
		t.Errorf("stderr: %s", r.stderr)
	}
	key, err := m.store().Active()
	check(t, err)
	for _, i := range m.rows(t, key) {
		if i.Signer != key.Fingerprint() {
			t.Errorf("row %+v", i)
		}
	}
	m.checkClean(t)
}

// TestVerifiable: what a kernel cannot verify is refused before anything is changed, by the configurations of two real kernels.
func TestVerifiable(t *testing.T) {
	dir := t.TempDir()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ecdsa"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, ec.Public(), ec)
	check(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	check(t, err)
	key := filepath.Join(dir, "key.pem")
	check(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "cert.der"), cert, 0o644))
	d := func(hash string, conf keys.Config) *dresser {
		store := keys.Open("/").With(conf)
		d := &dresser{sign: signConfig{Hash: hash}, store: store}
		if k, err := store.Active(); conf.Key != "" {
			check(t, err)
			d.key = &k
		}
		return d
	}
	kernels, err := kernel.Find("/")
	check(t, err)
	seen := map[string]bool{}
	for _, k := range kernels {
		series := strings.Join(strings.Split(k.Name, ".")[:2], ".")
		if k.Tree == nil || series != "6.1" && series != "6.12" {
			continue
		}
		seen[series] = true
		for hash, takes := range map[string]bool{"sha256": true, "sha512": series == "6.12", "sha384": series == "6.12", "sha3-256": series == "6.12"} {
			if err := d(hash, keys.Config{}).verifiable(k, form{signed: true}); (err == nil) != takes {
				t.Errorf("%s for %s: %v", hash, k.Name, err)
			} else if err != nil && len(hints(err)) == 0 {
				t.Errorf("no advice: %v", err)
			}
		}
		ecdsa := keys.Config{Key: key, Cert: filepath.Join(dir, "cert.der")}
		if err := d("sha256", ecdsa).verifiable(k, form{signed: true}); (err == nil) != (series == "6.12") {
			t.Errorf("ECDSA for %s: %v", k.Name, err)
		}
		if err := d("sha512", ecdsa).verifiable(k, form{}); err != nil {
			t.Errorf("nothing is signed: %v", err)
		}
	}
	if len(seen) != 2 {
		t.Errorf("kernels of %v only", seen)
	}
}
