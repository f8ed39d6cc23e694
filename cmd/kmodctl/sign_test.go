package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
)

// TestSignedAsSignFile signs every module of every example, as it is built for both kernels, with keys that kmodctl made: the
// bytes are those of the sign-file of each kernel.
func TestSignedAsSignFile(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	_, paths := examplePaths(t)
	file(t, filepath.Join(root, configFile), "compress = \"none\"\n")
	must(t, append([]string{"--root", root, "build", "../../examples/acme-led"}, paths...)...)
	modules, err := filepath.Glob(filepath.Join(root, "lib/modules/*/updates/kmodctl/*.ko"))
	if want := 8 * len(rels); err != nil || len(modules) != want {
		t.Fatalf("%d modules of the examples, want %d: %v", len(modules), want, err)
	}
	tools, err := filepath.Glob("/usr/lib/linux-kbuild-6.*/scripts/sign-file")
	if err != nil || len(tools) < 2 {
		t.Fatalf("sign-file of two series: %q, %v: apt install linux-kbuild-6.1", tools, err)
	}
	compared := 0
	for _, bits := range []string{"2048", "4096"} {
		key, cert := newKey(t, bits)
		for _, hash := range []string{"sha256", "sha512"} {
			ours := t.TempDir()
			for i, module := range modules {
				out := filepath.Join(ours, "ours.ko")
				must(t, "sign", module, "--key", key, "--cert", cert, "--hash", hash, "-o", out)
				theirs := filepath.Join(ours, "theirs.ko")
				tool := tools[i%len(tools)]
				if text, err := exec.Command(tool, hash, key, cert, module, theirs).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", tool, err, text)
				}
				if !bytes.Equal(read(t, out), read(t, theirs)) {
					t.Errorf("RSA %s, %s: %s is not what %s makes of it", bits, hash, module, tool)
				}
				compared++
			}
		}
	}
	t.Logf("%d files are those of sign-file", compared)
}

// newKey makes a key as a user does, and returns its files.
func newKey(t testing.TB, bits string) (key, cert string) {
	t.Helper()
	root := t.TempDir()
	must(t, "--root", root, "key", "new", "--bits", bits)
	dir := filepath.Join(root, "etc/kmodctl/keys/mok1")
	return filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.der")
}

// unsigned is a module of a kernel without its signature.
func unsigned(t testing.TB) string {
	t.Helper()
	found, err := filepath.Glob("/lib/modules/" + releases(t)[0] + "/kernel/drivers/net/dummy.ko*")
	if err != nil || len(found) != 1 {
		t.Fatalf("dummy.ko: %q, %v", found, err)
	}
	elf, _, err := ko.Decompress(read(t, found[0]))
	if err != nil {
		t.Fatal(err)
	}
	image, _, err := modsig.Split(elf)
	if err != nil {
		t.Fatal(err)
	}
	return file(t, filepath.Join(t.TempDir(), "dummy.ko"), string(image))
}

// file writes a file, in folders that are made, and returns its name.
func file(t testing.TB, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func openssl(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestSignECDSA: openssl verifies what a key on P-256 or P-384 signs, and a kernel that does not is named.
func TestSignECDSA(t *testing.T) {
	module := unsigned(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, curve := range []string{"P-256", "P-384"} {
		openssl(t, "req", "-new", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:"+curve, "-nodes", "-subj", "/CN=test", "-keyout", in("key"), "-out", in("cert"))
		r := must(t, "sign", module, "--key", in("key"), "--cert", in("cert"), "--hash", "sha384", "-o", in("signed.ko"), "--json")
		checkDocumented(t, r.out)
		says(t, r.out, releases(t)[0]+" will not take it: it does not verify ")
		image, sig, err := modsig.Split(read(t, in("signed.ko")))
		if err != nil || sig == nil || !bytes.Equal(image, read(t, module)) {
			t.Fatalf("%s: %v", curve, err)
		}
		signed := read(t, in("signed.ko"))
		file(t, in("message"), string(signed[len(image):len(signed)-len(modsig.Magic)-12]))
		openssl(t, "cms", "-verify", "-binary", "-noverify", "-inform", "DER", "-in", in("message"), "-content", module, "-certfile", in("cert"), "-out", os.DevNull)
	}
}

// TestSignInPlace: a file keeps its mode, a link stays one, compressed files stay compressed, and a file that could not be signed is as it was.
func TestSignInPlace(t *testing.T) {
	key, cert := newKey(t, "2048")
	module := unsigned(t)
	plain := read(t, module)
	dir := filepath.Dir(module)
	sign := func(code int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"sign", "--key", key, "--cert", cert}, args...)...)
		if r.code != code {
			t.Fatalf("sign %q: exit %d, want %d\n%s", args, r.code, code, r.stderr)
		}
		return r
	}
	link := filepath.Join(dir, "link.ko")
	if err := errors.Join(os.Chmod(module, 0o640), os.Symlink("dummy.ko", link)); err != nil {
		t.Fatal(err)
	}
	says(t, sign(0, "--dry-run", link).out, "sign "+link+" with kmodctl module signing key mok1 of this machine")
	if !bytes.Equal(read(t, module), plain) {
		t.Error("a dry run has signed")
	}
	sign(0, link)
	signed := read(t, module)
	if info, err := os.Lstat(module); err != nil || info.Mode() != 0o640 || len(signed) <= len(plain) {
		t.Errorf("mode %v, %d bytes: %v", info.Mode(), len(signed), err)
	}
	if target, err := os.Readlink(link); err != nil || target != "dummy.ko" {
		t.Errorf("the link leads to %q: %v", target, err)
	}
	says(t, sign(0, module).stderr, "nothing to do")
	for compression, ending := range map[string]string{"xz": ".xz", "zstd": ".zst", "gzip": ".gz"} {
		packed, err := ko.Compress(plain, compression)
		if err != nil {
			t.Fatal(err)
		}
		file := file(t, filepath.Join(dir, "packed.ko"+ending), string(packed))
		says(t, sign(0, file).stderr, "compressed with "+compression+" again")
		if elf, got, err := ko.Decompress(read(t, file)); err != nil || got != compression || !bytes.Equal(elf, signed) {
			t.Errorf("%s: %s, %v, and not what was signed", compression, got, err)
		}
	}
	text := file(t, filepath.Join(dir, "text.ko"), "not a module")
	r := sign(exitPartly, text, module, filepath.Join(dir, "absent.ko"))
	says(t, r.stderr, "sign "+text+": ", "absent.ko: no such file", "2 of 3 failed")
	if string(read(t, text)) != "not a module" {
		t.Error("what is no module was changed")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	otherKey, _ := newKey(t, "2048")
	if r := kmodctl(t, "sign", module, "--key", otherKey, "--cert", cert); r.code != exitFailed || !bytes.Equal(read(t, module), signed) {
		t.Errorf("with another's certificate: exit %d\n%s", r.code, r.stderr)
	} else {
		says(t, r.stderr, "is not that of the key")
	}
	for _, args := range [][]string{{"sign", module, "--key", key}, {"sign"}, {"sign", module, link, "-o", "x"}, {"sign", module, "--hash", "crc32"}} {
		if r := kmodctl(t, args...); r.code != exitUsage {
			t.Errorf("%q: exit %d", args, r.code)
		}
	}
}

// TestSignWithCommand: a program that signs in place of a key makes the same bytes; one that makes others is found out.
func TestSignWithCommand(t *testing.T) {
	key, cert := newKey(t, "2048")
	module := unsigned(t)
	want := filepath.Join(t.TempDir(), "want.ko")
	must(t, "sign", module, "--key", key, "--cert", cert, "-o", want)
	root := t.TempDir()
	put(t, root, cert)
	otherKey, _ := newKey(t, "2048")
	for _, c := range []struct {
		argv []string
		says string // "" when it signs
	}{
		{[]string{"openssl", "dgst", "-{hash}", "-sign", key, "{file}"}, ""},
		{[]string{"openssl", "pkeyutl", "-sign", "-inkey", key, "-pkeyopt", "digest:{hash}", "-in", "{digest}"}, ""},
		{[]string{"openssl", "dgst", "-{hash}", "-sign", otherKey, "{file}"}, "openssl: what it wrote is no signature of the module"},
		{[]string{"openssl", "dgst", "-{hash}", "-sign", "/absent", "{file}"}, "openssl: exit status 1: "},
		{[]string{"openssl", "version"}, "neither {file} nor {digest}"},
		{[]string{"/absent", "{file}"}, "/absent: no such file"},
	} {
		argv, err := json.Marshal(c.argv)
		if err != nil {
			t.Fatal(err)
		}
		file(t, filepath.Join(root, configFile), "[sign]\ncert = \""+cert+"\"\ncommand = "+string(argv)+"\n")
		out := filepath.Join(t.TempDir(), "out.ko")
		r := kmodctl(t, "--root", root, "sign", module, "-o", out)
		if c.says != "" {
			says(t, r.stderr, c.says)
			if _, err := os.Stat(out); r.code == 0 || err == nil {
				t.Errorf("%q: exit %d, and a file", c.argv, r.code)
			}
			continue
		}
		if r.code != 0 || !bytes.Equal(read(t, out), read(t, want)) {
			t.Errorf("%q: exit %d, or other bytes\n%s", c.argv, r.code, r.stderr)
		}
	}
	says(t, must(t, "--root", root, "key", "list").out, "configured", "active")
}

// TestSignPassphrase: a key with a passphrase signs where the passphrase is told, and nowhere else.
func TestSignPassphrase(t *testing.T) {
	key, cert := newKey(t, "2048")
	module := unsigned(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	want := in("want.ko")
	must(t, "sign", module, "--key", key, "--cert", cert, "-o", want)
	file(t, in("word"), "correct horse\nno part of it\n")
	file(t, in("wrong"), "battery staple")
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key, word string) result {
		cmd := exec.Command("setsid", "-w", program, "sign", module, "--key", key, "--cert", cert, "-o", in("out.ko")) // without a terminal
		if word != "" {
			if err := os.Chmod(in(word), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(os.Environ(), passphraseVariable+"="+in(word))
		}
		return command(t, cmd)
	}
	for _, kdf := range [][]string{{"-v2", "aes-256-cbc"}, {"-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA1"}, {"-scrypt"}} {
		openssl(t, slices.Concat([]string{"pkcs8", "-topk8", "-in", key, "-out", in("protected"), "-passout", "pass:correct horse"}, kdf)...)
		if r := sign(in("protected"), "word"); r.code != 0 || !bytes.Equal(read(t, in("out.ko")), read(t, want)) {
			t.Errorf("%q: exit %d, or other bytes\n%s", kdf, r.code, r.stderr)
		}
		says(t, sign(in("protected"), "wrong").stderr, "wrong passphrase")
		says(t, sign(in("protected"), "").stderr, "the key has a passphrase", passphraseVariable)
	}
	if err := os.Chmod(in("word"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "sign", module, "--key", in("protected"), "--cert", cert, "-o", in("out.ko"))
	cmd.Env = append(os.Environ(), passphraseVariable+"="+in("word"))
	says(t, command(t, cmd).stderr, "is not safe")

	// One that kmodctl protects, openssl opens.
	root := t.TempDir()
	if err := os.Chmod(in("word"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(program, "--root", root, "key", "new", "--passphrase")
	cmd.Env = append(os.Environ(), passphraseVariable+"="+in("word"))
	if r := command(t, cmd); r.code != 0 {
		t.Fatal(r.stderr)
	}
	openssl(t, "pkey", "-in", filepath.Join(root, "etc/kmodctl/keys/mok1/key.pem"), "-passin", "pass:correct horse", "-noout")
	says(t, must(t, "--root", root, "key", "show").out, "with a passphrase")
	if _, err := x509.ParseCertificate(read(t, filepath.Join(root, "etc/kmodctl/keys/mok1/cert.der"))); err != nil {
		t.Error(err)
	}
}
