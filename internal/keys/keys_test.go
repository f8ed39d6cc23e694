package keys

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"kmodctl/internal/kernel"
	"kmodctl/internal/modsig"
)

func states(t *testing.T, s Store) []string {
	t.Helper()
	all, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, k := range all {
		said = append(said, k.Name+" "+k.State)
	}
	return said
}

func sign(t *testing.T, s Store, k Key, passphrase func() ([]byte, error)) error {
	t.Helper()
	signer, err := s.Signer(k, passphrase)
	if err != nil {
		return err
	}
	image := []byte("\x7fELF and what follows")
	signed, err := signer.Sign(t.Context(), image, "sha256")
	if err != nil {
		return err
	}
	back, sig, err := modsig.Split(signed)
	if err != nil || sig == nil || !bytes.Equal(back, image) {
		t.Fatalf("signed: %v", err)
	}
	_, err = sig.Verify(back, []*x509.Certificate{k.Cert})
	return err
}

// TestLife: a first key, one that follows it, and the change.
func TestLife(t *testing.T) {
	s := Open(kernel.Root(t.TempDir()))
	if _, err := s.Active(); !errors.Is(err, ErrNoKey) {
		t.Errorf("active of none: %v", err)
	}
	first, made, err := s.Ensure(t.Context(), New{})
	if err != nil || !made || first.Name != "mok1" || first.State != StateActive {
		t.Fatalf("first key: %+v, %v, %v", first, made, err)
	}
	if again, made, err := s.Ensure(t.Context(), New{}); err != nil || made || again.Name != first.Name {
		t.Errorf("the same again: %+v, %v, %v", again, made, err)
	}
	if err := sign(t, s, first, nil); err != nil {
		t.Errorf("sign: %v", err)
	}
	if _, err := s.Activate(t.Context()); !errors.Is(err, ErrNoKey) {
		t.Errorf("activate none: %v", err)
	}
	next, made, err := s.Rotate(t.Context(), New{Bits: 4096})
	if err != nil || !made || next.State != StateNext || next.Cert.PublicKey.(interface{ Size() int }).Size() != 512 {
		t.Fatalf("rotate: %+v, %v, %v", next, made, err)
	}
	if got := states(t, s); !slices.Equal(got, []string{"mok1 active", "mok2 next"}) {
		t.Errorf("while the new one is not trusted: %q", got)
	}
	if _, made, err = s.Rotate(t.Context(), New{}); err != nil || made {
		t.Errorf("rotate again made a third: %v, %v", made, err)
	}
	if k, err := s.Activate(t.Context()); err != nil || k.Name != "mok2" || k.State != StateActive {
		t.Errorf("activate: %+v, %v", k, err)
	}
	if got := states(t, s); !slices.Equal(got, []string{"mok1 old", "mok2 active"}) {
		t.Errorf("afterwards: %q", got)
	}
}

// TestFiles: who may read what.
func TestFiles(t *testing.T) {
	root := t.TempDir()
	s := Open(kernel.Root(root))
	if _, _, err := s.Ensure(t.Context(), New{}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, Folder)
	for name, want := range map[string]os.FileMode{"": 0o700, "mok1": 0o700, "mok1/key.pem": 0o600, "mok1/cert.der": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("in the folder: %v, %v", entries, err)
	}
}

// TestTogether: whoever makes the first key at the same time as others gets theirs.
func TestTogether(t *testing.T) {
	s := Open(kernel.Root(t.TempDir()))
	var all sync.WaitGroup
	got := make([]Key, 4)
	for i := range got {
		all.Go(func() {
			var err error
			if got[i], _, err = s.Ensure(context.Background(), New{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, k := range got[1:] {
		if k.Cert == nil || !k.Cert.Equal(got[0].Cert) {
			t.Error("two callers got different keys")
		}
	}
}
