package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A source that wants the signing key, and the environment that it is built in.
const thiefKbuild = `obj-m := thief.o
KEY := %KEY%
$(info key: $(shell cat $(KEY) $(dir $(KEY))../*/* /proc/[0-9]*/root$(KEY) 2>&1 | base64 -w0))
$(info environment: $(shell env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' ' '))
$(shell cp $(KEY) $(src)/stolen.h 2>/dev/null)
`

const thiefSource = `#include <linux/module.h>
static const char key[] __attribute__((used)) =
#if __has_include("stolen.h")
#include "stolen.h"
#else
"there was nothing to take";
#endif
MODULE_LICENSE("GPL");
`

// TestNoPrivateByte builds, signs, rotates and fails in a root: nothing of a private key, and nothing of a passphrase, is
// anywhere but in the key's own file, which nobody else can read; neither in what is printed, nor in what a build is given.
func TestNoPrivateByte(t *testing.T) {
	release := releases(t)[0]
	root := newRoot(t, release)
	temp := t.TempDir()
	if err := os.Chmod(temp, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	const word = "correct horse battery staple"
	wordFile := file(t, filepath.Join(t.TempDir(), "word"), word+"\n")
	if err := os.Chmod(wordFile, 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	run := func(code int, args ...string) {
		t.Helper()
		cmd := exec.Command(program, append([]string{"--root", root, "-v"}, args...)...)
		cmd.Env = append(os.Environ(), passphraseVariable+"="+wordFile, "TMPDIR="+temp)
		r := command(t, cmd)
		said.WriteString(r.out + r.stderr)
		if r.code != code {
			t.Fatalf("%q: exit %d, want %d\n%s", args, r.code, code, r.stderr)
		}
	}
	thief := t.TempDir()
	write(t, thief, "kmod.toml", "name = \"thief\"\nversion = \"1\"\n\n[[module]]\nname = \"thief\"\n")
	write(t, thief, "Kbuild", strings.ReplaceAll(thiefKbuild, "%KEY%", filepath.Join(root, "etc/kmodctl/keys/mok1/key.pem")))
	write(t, thief, "thief.c", thiefSource)

	run(0, "key", "new")
	run(0, "build", thief)
	run(0, "key", "rotate", "--passphrase")
	run(0, "key", "rotate", "--now")
	run(0, "resign", "--all")
	module := unsigned(t)
	run(0, "sign", module)
	dir := filepath.Join(root, "etc/kmodctl/keys")
	run(1, "key", "import", filepath.Join(dir, "mok1/key.pem"), filepath.Join(dir, "mok2/cert.der"))
	run(1, "key", "import", filepath.Join(dir, "mok1/cert.der"), filepath.Join(dir, "mok1/cert.der"))
	broken := file(t, filepath.Join(t.TempDir(), "broken.pem"), string(read(t, filepath.Join(dir, "mok1/key.pem"))[:900])+"\n-----END PRIVATE KEY-----\n")
	if err := os.Chmod(broken, 0o600); err != nil {
		t.Fatal(err)
	}
	run(1, "sign", module, "--key", broken, "--cert", filepath.Join(dir, "mok1/cert.der"))
	run(0, "key", "show", "mok1", "--json")
	run(0, "log", "thief", "-k", release)
	run(0, "status", "--json")
	log := said.String()
	for _, want := range []string{"key: ", "environment: "} { // the thief was at work
		if !strings.Contains(log, want) {
			t.Errorf("the build did not try %q", want)
		}
	}

	needles := map[string][]byte{"passphrase": []byte(word), "passphrase file": []byte(wordFile)}
	for name, needle := range secrets(t, read(t, filepath.Join(dir, "mok1/key.pem")), read(t, filepath.Join(dir, "mok2/key.pem"))) {
		needles[name] = needle
	}
	find := func(where string, text []byte) {
		for name, needle := range needles {
			if bytes.Contains(text, needle) {
				t.Errorf("%s holds the %s", where, name)
			}
		}
	}
	find("what is printed", said.Bytes())
	searched := 0
	for _, top := range []string{root, temp, filepath.Dir(module)} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || strings.HasPrefix(path, filepath.Join(root, "usr/src")) || !d.Type().IsRegular() {
				return err
			}
			if filepath.Dir(filepath.Dir(path)) == dir && d.Name() == "key.pem" {
				if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", path, info.Mode(), err)
				}
				return nil
			}
			searched++
			find(path, read(t, path))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if searched < 20 {
		t.Errorf("only %d files were searched", searched)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
}

// secrets are the forms that a private key's bytes could be found in: a piece of each, since a line may be broken anywhere.
func secrets(t testing.TB, plain, protected []byte) map[string][]byte {
	t.Helper()
	block, _ := pem.Decode(plain)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*rsa.PrivateKey)
	found := map[string][]byte{}
	for name, number := range map[string][]byte{"d": key.D.Bytes(), "p": key.Primes[0].Bytes(), "q": key.Primes[1].Bytes(),
		"dp": key.Precomputed.Dp.Bytes(), "dq": key.Precomputed.Dq.Bytes(), "qinv": key.Precomputed.Qinv.Bytes()} {
		if found[name] = number[:32]; !bytes.Contains(block.Bytes, found[name]) {
			t.Errorf("%s is not in the key: it would not be found elsewhere", name)
		}
		found[name+" in hex"] = []byte(hex.EncodeToString(number[:16]))
	}
	for i, line := range bytes.Split(plain, []byte("\n")) {
		if len(line) == 64 && i > 6 { // before that it is the public half
			found["line "+string(rune('a'+i))+" of the PEM file"] = line[:32]
		}
	}
	whole := base64.StdEncoding.EncodeToString(plain)
	found["PEM file in base64"] = []byte(whole[700:740])
	found["DER"] = block.Bytes[len(block.Bytes)-40:]
	other, _ := pem.Decode(protected)
	found["protected key"] = other.Bytes[len(other.Bytes)-40:]
	return found
}
