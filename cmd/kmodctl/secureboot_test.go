package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/modsig"
)

// signerOf is a certificate and what is signed with it.
type signerOf struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newSigner(t testing.TB, name string) signerOf {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signerWith(t, name, key)
}

func signerWith(t testing.TB, name string, key crypto.Signer) signerOf {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)} // the kernel takes no year before 1970
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signerOf{cert, key}
}

func (s signerOf) sign(t testing.TB, image []byte) []byte {
	t.Helper()
	return s.signOver(t, image, crypto.SHA256)
}

func (s signerOf) signOver(t testing.TB, image []byte, hash crypto.Hash) []byte {
	t.Helper()
	signed, err := modsig.Sign(image, s.key, s.cert, hash)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// TestWhatLoads: what is said of each signature, for a kernel that locks itself down under Secure Boot and one that does not.
func TestWhatLoads(t *testing.T) {
	db, mok, asked, revoked, stranger := newSigner(t, "db"), newSigner(t, "mok"), newSigner(t, "asked"), newSigner(t, "revoked"), newSigner(t, "stranger")
	image := []byte("the bytes of a module")
	tampered := func(signed []byte) []byte {
		out := append([]byte{}, signed...)
		out[0] ^= 1
		return out
	}
	const locks, open, unlisted = "6.1.0-1-locks", "6.1.0-2-open", "6.1.0-3-unlisted"
	machine := func(on byte) *trust {
		root := withFirmware(t, efi.Variable{Name: "SecureBoot", Owner: efi.Global, Data: []byte{on}},
			certificates("db", efi.Security, db.cert.Raw, revoked.cert.Raw), certificates("MokListRT", efi.Shim, mok.cert.Raw),
			certificates("MokNew", efi.Shim, asked.cert.Raw), certificates("dbx", efi.Security, revoked.cert.Raw))
		for release, config := range map[string]string{
			locks:    "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\nCONFIG_SYSTEM_REVOCATION_LIST=y\n",
			open:     "CONFIG_NET=y\n",
			unlisted: "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\n",
		} {
			for name, text := range map[string]string{"lib/modules/" + release + "/modules.order": "", "boot/config-" + release: config} {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		tr, err := (&env{root: kernel.Root(root), out: io.Discard, err: newScreen(io.Discard)}).trust(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	on, off := machine(1), machine(0)
	for _, c := range []struct {
		name    string
		trust   *trust
		release string
		file    []byte
		loads   string
		why     string
	}{
		{"unsigned", on, locks, image, no, "unsigned"},
		{"unsigned", on, open, image, yes, "unsigned"},
		{"unsigned", off, locks, image, yes, "unsigned"},
		{"signed by db", on, locks, db.sign(t, image), yes, ""},
		{"signed by db", off, locks, db.sign(t, image), yes, ""},
		{"signed by a MOK", on, locks, mok.sign(t, image), yes, ""},
		{"signed by a MOK", off, locks, mok.sign(t, image), yes, "does not trust"},
		{"asked for", on, locks, asked.sign(t, image), no, "does not trust"},
		{"revoked", on, locks, revoked.sign(t, image), no, "does not trust"},
		{"revoked, which the kernel does not look at", on, unlisted, revoked.sign(t, image), yes, ""},
		{"by a stranger", on, locks, stranger.sign(t, image), no, "not known here"},
		{"by a stranger", on, open, stranger.sign(t, image), yes, "not known here"},
		{"changed", on, locks, tampered(db.sign(t, image)), no, "changed after it was signed"},
		{"changed", on, open, tampered(db.sign(t, image)), no, "changed after it was signed"},
		{"changed, by a stranger", on, open, tampered(stranger.sign(t, image)), yes, "not known here"},
		{"damaged", on, open, []byte("x" + modsig.Magic), no, "damaged"},
	} {
		var m moduleTrust
		for _, k := range c.trust.kernels {
			if k.Release == c.release {
				c.trust.judge(&m, k, c.file)
			}
		}
		if m.Loads != c.loads || !strings.Contains(m.Why, c.why) || c.why == "" && m.Why != "" {
			t.Errorf("%s, %s: loads %s: %q, want %s: %q", c.name, c.release, m.Loads, m.Why, c.loads, c.why)
		}
	}
}

// TestNextStep walks from a machine without a key to one that is done, by what secureboot says is next.
func TestNextStep(t *testing.T) {
	root := withFirmware(t, efi.Variable{Name: "SecureBoot", Owner: efi.Global, Data: []byte{0}})
	for name, text := range map[string]string{"lib/modules/6.1.0-1/modules.order": "", "boot/config-6.1.0-1": "CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := inRoot(t, root)
	next := func() (tries string) {
		t.Helper()
		r := k(0, "secureboot", "--json")
		checkDocumented(t, r.out)
		var doc secureBootFacts
		if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
			t.Fatal(err)
		}
		for _, n := range doc.Next {
			tries += strings.TrimPrefix(n.Try, "kmodctl --root "+root+" ") + ";"
		}
		return tries
	}
	expect := func(want string) {
		t.Helper()
		if got := next(); got != want {
			t.Errorf("next is %q, want %q", got, want)
		}
	}
	expect("")
	setVariables(t, root, secureBootOn)
	expect("key new;key enroll;")
	k(0, "key", "new")
	expect("key enroll mok1;")
	k(0, "key", "enroll", "mok1", "--generate-password")
	expect("reboot;")
	cert := read(t, root, "etc/kmodctl/keys/mok1/cert.der")
	os.Remove(filepath.Join(root, efivars, "MokNew-"+efi.Shim.String()))
	setVariables(t, root, certificates("MokListRT", efi.Shim, cert))
	expect("")
	if r := k(0, "secureboot"); !strings.Contains(r.out, "mok1, active: enrolled (MokListRT)") || !strings.Contains(r.out, "nothing to do") {
		t.Errorf("the page:\n%s", r.out)
	}
	setVariables(t, root, certificates("MokListXRT", efi.Shim, cert))
	expect("key rotate --now;")
}
