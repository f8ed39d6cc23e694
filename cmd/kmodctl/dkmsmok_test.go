package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestGenerateMOK: dkms generate_mok makes the machine's key, once, and shows it under DKMS's names, also after a rotation.
func TestGenerateMOK(t *testing.T) {
	root := t.TempDir()
	tree := filepath.Join(root, "var/lib/dkms")
	says(t, dkmsRuns(t, root, 0, "generate_mok").stderr, "made signing key mok1")
	says(t, dkmsRuns(t, root, 0, "generate_mok").stderr, "nothing to do: key mok1 signs")
	for name, to := range map[string]string{"mok.key": "/etc/kmodctl/keys/active/key.pem", "mok.pub": "/etc/kmodctl/keys/active/cert.der"} {
		if got, err := os.Readlink(filepath.Join(tree, name)); err != nil || got != to {
			t.Errorf("%s leads to %q, %v", name, got, err)
		}
		if _, err := os.Stat(filepath.Join(root, to)); err != nil {
			t.Error(err)
		}
	}
	says(t, must(t, "--root", root, "key", "import").stderr, "no other keys")

	// What was cut off is done.
	if err := os.Remove(filepath.Join(tree, "mok.pub")); err != nil {
		t.Fatal(err)
	}
	dkmsRuns(t, root, 0, "generate_mok")
	if _, err := os.Lstat(filepath.Join(tree, "mok.pub")); err != nil {
		t.Error(err)
	}
}

// TestGenerateMOKKeeps: what DKMS made stays and signs; one file of two is an error.
func TestGenerateMOKKeeps(t *testing.T) {
	key, cert := newKey(t, "2048")
	root := t.TempDir()
	priv := file(t, filepath.Join(root, "var/lib/dkms/mok.key"), string(read(t, key)))
	if err := os.Chmod(priv, 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, dkmsRuns(t, root, 1, "generate_mok").stderr, "only "+priv+" of the two files")
	file(t, filepath.Join(root, "var/lib/dkms/mok.pub"), string(read(t, cert)))
	says(t, dkmsRuns(t, root, 0, "generate_mok").stderr, "took over signing key mok1 from /var/lib/dkms/mok.key")
	if info, err := os.Lstat(priv); err != nil || !info.Mode().IsRegular() || !bytes.Equal(read(t, priv), read(t, key)) {
		t.Errorf("DKMS's key was changed: %v", err)
	}
	if got := must(t, "--root", root, "key", "show", "--der").out; got != string(read(t, cert)) {
		t.Error("another key signs")
	}
}

// TestFrameworkKey: the key that framework.conf names signs; one in a token, or that is not there, does not.
func TestFrameworkKey(t *testing.T) {
	key, cert := newKey(t, "2048")
	root := t.TempDir()
	must(t, "--root", root, "key", "new")
	frame := func(key string) {
		file(t, filepath.Join(root, "etc/dkms/framework.conf"), "mok_signing_key="+key+"\nmok_certificate=/etc/my.der\n")
	}
	signs := func(name string) {
		t.Helper()
		says(t, must(t, "--root", root, "key", "show").out, "name:       "+name+"\n")
	}
	frame("/etc/my.key")
	signs("mok1")
	if err := os.Chmod(file(t, filepath.Join(root, "etc/my.key"), string(read(t, key))), 0o600); err != nil {
		t.Fatal(err)
	}
	file(t, filepath.Join(root, "etc/my.der"), string(read(t, cert)))
	signs("configured")
	frame("pkcs11:object=mok")
	signs("mok1")
	says(t, dkmsRuns(t, root, 0, "generate_mok").stderr, "a key in a token signs by sign.command")
}
