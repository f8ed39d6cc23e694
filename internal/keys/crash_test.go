package keys

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"kmodctl/internal/kernel"
)

// TestCutOff: what a command leaves that is killed before a key has its name is no key, and the next one takes it away.
func TestCutOff(t *testing.T) {
	root := t.TempDir()
	s := Open(kernel.Root(root))
	dir := filepath.Join(root, Folder)
	half := func(link, name string) {
		t.Helper()
		err := errors.Join(
			os.MkdirAll(filepath.Join(dir, newPrefix+name), 0o700),
			os.WriteFile(filepath.Join(dir, newPrefix+name, keyFile), []byte("half"), 0o600),
			os.Symlink(name, filepath.Join(dir, link)),
			os.Symlink(name, filepath.Join(dir, newPrefix+link)))
		if err != nil {
			t.Fatal(err)
		}
	}
	half(activeLink, "mok1")
	if _, err := s.Active(); !errors.Is(err, ErrNoKey) {
		t.Errorf("half a key is one: %v", err)
	}
	if k, made, err := s.Ensure(t.Context(), New{}); err != nil || !made || k.Name != "mok1" {
		t.Fatalf("after it: %+v, %v, %v", k, made, err)
	}
	half(nextLink, "mok2")
	if got := states(t, s); !slices.Equal(got, []string{"mok1 active"}) {
		t.Errorf("with half a next key: %q", got)
	}
	if _, err := s.Activate(t.Context()); !errors.Is(err, ErrNoKey) {
		t.Errorf("half a key was made the active one: %v", err)
	}
	if k, made, err := s.Rotate(t.Context(), New{}); err != nil || !made || k.Name != "mok2" {
		t.Fatalf("after it: %+v, %v, %v", k, made, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, newPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if err := os.Remove(filepath.Join(dir, "mok1", certFile)); err != nil {
		t.Fatal(err)
	}
	all, err := s.List()
	if err == nil || len(all) != 1 || all[0].Name != "mok2" {
		t.Errorf("with a key that lost its certificate: %+v, %v", all, err)
	}
	if _, err := s.Active(); err == nil || errors.Is(err, ErrNoKey) {
		t.Errorf("the active key lost its certificate, and it is said: %v", err)
	}
}

// TestNotWritten: of a key that cannot be put in its place no part stays.
func TestNotWritten(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, Folder)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "mok1"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := Open(kernel.Root(root))
	if _, _, err := s.Ensure(t.Context(), New{}); err == nil {
		t.Fatal("a key took the place of a file")
	}
	if left, err := filepath.Glob(filepath.Join(dir, newPrefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if _, err := s.Active(); !errors.Is(err, ErrNoKey) {
		t.Errorf("it is a key all the same: %v", err)
	}
}

// TestTakeOver: a pair that DKMS has is used, rather than a key that nobody trusts yet; not one that others could have read.
func TestTakeOver(t *testing.T) {
	mine := t.TempDir()
	theirs, _, err := Open(kernel.Root(mine)).Ensure(t.Context(), New{})
	if err != nil {
		t.Fatal(err)
	}
	for mode, taken := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o644: false, 0o620: false} {
		root := t.TempDir()
		dir := filepath.Join(root, "var/lib/dkms")
		key, err := os.ReadFile(theirs.File)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "mok.key"), key, 0o600),
			os.Chmod(filepath.Join(dir, "mok.key"), mode), os.WriteFile(filepath.Join(dir, "mok.pub"), theirs.Cert.Raw, 0o644))
		if err != nil {
			t.Fatal(err)
		}
		s := Open(kernel.Root(root))
		k, made, err := s.Ensure(t.Context(), New{TakeOver: true})
		if err != nil || !made || k.State != StateActive || k.Cert.Equal(theirs.Cert) != taken || (k.Origin == "/var/lib/dkms/mok.key") != taken {
			t.Errorf("mode %o: %+v, %v, %v", mode, k, made, err)
		}
		if err := sign(t, s, k, nil); err != nil {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

// FuzzPrivate: whatever is in a file of a private key, it is a key or an error.
func FuzzPrivate(f *testing.F) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	text, err := encode(private, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	for _, kind := range [][]string{{"-traditional"}, {"-aes128", "-passout", "pass:x"}, {"-aes128", "-traditional", "-passout", "pass:x"}, {"-outform", "DER"}} {
		cmd := exec.Command("openssl", append([]string{"pkey"}, kind...)...)
		cmd.Stdin = bytes.NewReader(text)
		seed, err := cmd.Output()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		asked := false
		key, err := parsePrivate(text, func() ([]byte, error) {
			asked = true
			return nil, ErrEncrypted // deriving keys from passphrases is the library's, and slow
		})
		if (key == nil) == (err == nil) {
			t.Errorf("key %v, error %v", key != nil, err)
		}
		if asked != (encryptedPart(text) != nil) && key == nil && errors.Is(err, ErrEncrypted) {
			t.Errorf("asked for a passphrase: %v", asked)
		}
	})
}

// FuzzCertificate: a certificate is one, in PEM or in DER, or it is an error.
func FuzzCertificate(f *testing.F) {
	p, err := Open(kernel.Root(f.TempDir())).newPair("mok1", New{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.cert.Raw)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cert, err := ParseCertificate(text)
		if (cert == nil) == (err == nil) {
			t.Errorf("certificate %v, error %v", cert != nil, err)
		}
		if cert != nil {
			k := Key{Cert: cert}
			_, _, _ = k.Algorithm(), k.Fingerprint(), k.SHA1()
		}
	})
}
