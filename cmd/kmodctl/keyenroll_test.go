package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/efi"
)

// efivars is the folder of a machine's variables below its root.
const efivars = "sys/firmware/efi/efivars"

// withFirmware makes a root whose firmware has variables, by their names and owners.
func withFirmware(t testing.TB, variables ...efi.Variable) string {
	t.Helper()
	root := t.TempDir()
	setVariables(t, root, variables...)
	return root
}

func setVariables(t testing.TB, root string, variables ...efi.Variable) {
	t.Helper()
	dir := filepath.Join(root, efivars)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, v := range variables {
		if err := os.WriteFile(filepath.Join(dir, v.Name+"-"+v.Owner.String()), append([]byte{6, 0, 0, 0}, v.Data...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// secureBootOn is what the firmware says when Secure Boot is on.
var secureBootOn = efi.Variable{Name: "SecureBoot", Owner: efi.Global, Data: []byte{1}}

// certificates is a variable that holds certificates in DER.
func certificates(name string, owner efi.GUID, certs ...[]byte) efi.Variable {
	var entries []efi.Entry
	for _, der := range certs {
		entries = append(entries, efi.Entry{Kind: efi.X509, Owner: efi.Shim, Data: der})
	}
	return efi.Variable{Name: name, Owner: owner, Data: efi.FormatLists(entries)}
}

func read(t testing.TB, name ...string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(name...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestKeyEnroll asks for keys in every way, and again: each time the firmware has what mokutil would have left.
func TestKeyEnroll(t *testing.T) {
	root := withFirmware(t, secureBootOn)
	k := inRoot(t, root)
	k(4, "key", "enroll") // there is no key
	k(0, "key", "new")
	cert := read(t, root, "etc/kmodctl/keys/mok1/cert.der")

	if r := k(0, "key", "enroll", "--dry-run"); !strings.Contains(r.out, "have MokManager ask for CN=") || !strings.Contains(r.stderr, `Choose "Enroll MOK"`) {
		t.Errorf("dry run: %s%s", r.out, r.stderr)
	}
	k(4, "key", "enroll", "none")
	k(1, "key", "enroll", "./none")
	k(1, "key", "enroll", "--password-file", "/dev/null")
	k(1, "key", "enroll", "--hash-file", "/dev/null")
	if left, _ := filepath.Glob(filepath.Join(root, efivars, "Mok*")); left != nil {
		t.Fatalf("a dry run or an error has left %v", left)
	}

	hash := "$6$abcdefghijklmnop$J/AWykHqo2Tx5UtavGnFc3ytI33la50JpzLTarSWVhkIXK6wOjNwwZjsrIw2UgmrER2EKrSHCeQyAINEEXAk1/"
	hashFile := filepath.Join(t.TempDir(), "hash")
	if err := os.WriteFile(hashFile, []byte(hash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	k(0, "key", "enroll", "--hash-file", hashFile)

	theirs := withFirmware(t, secureBootOn)
	mokutil := exec.Command("mokutil", "--import", filepath.Join(root, "etc/kmodctl/keys/mok1/cert.der"), "--hash-file", hashFile)
	mokutil.Env = append(os.Environ(), "LIBEFIVAR_OPS=efivarfs", "EFIVARFS_PATH="+filepath.Join(theirs, efivars)+"/")
	if out, err := mokutil.CombinedOutput(); err != nil {
		t.Fatalf("mokutil (as root): %v: %s", err, out)
	}
	for _, name := range []string{"MokNew", "MokAuth"} {
		file := filepath.Join(efivars, name+"-"+efi.Shim.String())
		if got, want := read(t, root, file), read(t, theirs, file); !bytes.Equal(got, want) {
			t.Errorf("%s:\n%x\nmokutil:\n%x", name, got, want)
		}
	}

	if r := k(0, "key", "enroll", "--hash-file", hashFile); !strings.Contains(r.stderr, "asked for already") {
		t.Errorf("again: %s", r.stderr)
	}
	k(0, "key", "rotate")
	r := k(0, "key", "enroll", "--generate-password", "--json")
	checkDocumented(t, r.out)
	var doc enrollDocument
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatal(err)
	}
	next := read(t, root, "etc/kmodctl/keys/mok2/cert.der")
	if want := certificates("", efi.Shim, next, cert).Data; !bytes.HasSuffix(read(t, root, efivars, "MokNew-"+efi.Shim.String()), want) {
		t.Error("the next key is not asked for, or the first one no longer")
	}
	if doc.Name != "mok2" || doc.State != "pending" || !doc.Asked || len(doc.Password) != 10 || len(doc.Steps) == 0 {
		t.Errorf("%+v", doc)
	}

	setVariables(t, root, certificates("MokListRT", efi.Shim, cert, next))
	os.Remove(filepath.Join(root, efivars, "MokNew-"+efi.Shim.String()))
	if r := k(0, "key", "enroll", "mok1"); !strings.Contains(r.stderr, "is in MokListRT") {
		t.Errorf("an enrolled key: %s", r.stderr)
	}
	setVariables(t, root, certificates("dbx", efi.Security, cert))
	if r := k(1, "key", "enroll", "mok1"); !strings.Contains(r.stderr, "revoked by dbx") {
		t.Errorf("a revoked key: %s", r.stderr)
	}
	if r := inRoot(t, t.TempDir())(1, "key", "enroll", filepath.Join(root, "etc/kmodctl/keys/mok1/cert.der")); !strings.Contains(r.stderr, "not booted by UEFI") {
		t.Errorf("without UEFI: %s", r.stderr)
	}
}
