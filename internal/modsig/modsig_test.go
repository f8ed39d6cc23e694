package modsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestSignFile signs what the kernel's own scripts/sign-file signs, with the
// same keys and hashes: the same bytes come out, for RSA.
func TestSignFile(t *testing.T) {
	tools, err := filepath.Glob("/usr/lib/linux-kbuild-6.*/scripts/sign-file")
	if err != nil || len(tools) < 2 {
		t.Fatalf("sign-file of two kernel series: %q, %v: apt install linux-kbuild-6.1", tools, err)
	}
	modules := examples(t)
	for name, key := range keys(t) {
		dir := t.TempDir()
		cert := certificate(t, key)
		pemKey, derCert := write(t, dir, key, cert)
		for _, tool := range tools {
			for _, hash := range []string{"sha256", "sha512"} {
				for _, module := range modules {
					image, err := os.ReadFile(module)
					if err != nil {
						t.Fatal(err)
					}
					theirs := filepath.Join(dir, "theirs.ko")
					if out, err := exec.Command(tool, hash, pemKey, derCert, module, theirs).CombinedOutput(); err != nil {
						t.Fatalf("%s: %v\n%s", tool, err, out)
					}
					want, err := os.ReadFile(theirs)
					if err != nil {
						t.Fatal(err)
					}
					h, _ := HashByName(hash)
					got, err := Sign(image, key, cert, h)
					if err != nil {
						t.Fatal(err)
					}
					if _, ok := key.(*rsa.PrivateKey); ok && !bytes.Equal(got, want) {
						t.Errorf("%s %s %s: not the bytes of %s", name, hash, module, tool)
					}
					for who, file := range map[string][]byte{"ours": got, "theirs": want} {
						back, sig, err := Split(file)
						if err != nil || !bytes.Equal(back, image) {
							t.Fatalf("%s %s: split: %v", name, who, err)
						}
						if by, err := sig.Verify(back, []*x509.Certificate{certificate(t, key), cert}); err != nil || by != cert {
							t.Errorf("%s %s %s: verify: %v", name, hash, who, err)
						}
						openssl(t, dir, file, image, derCert)
					}
				}
			}
		}
	}
}

// openssl verifies a signed module.
func openssl(t *testing.T, dir string, file, image []byte, derCert string) {
	t.Helper()
	der := file[len(image) : len(file)-len(Magic)-trailer]
	message, content := filepath.Join(dir, "der"), filepath.Join(dir, "content")
	for path, data := range map[string][]byte{message: der, content: image} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("openssl", "cms", "-verify", "-binary", "-noverify", "-inform", "DER", "-in", message, "-content", content,
		"-certfile", derCert, "-out", os.DevNull).CombinedOutput()
	if err != nil {
		t.Errorf("openssl cms -verify: %v\n%s", err, out)
	}
}

// TestVerify: what was changed, and what nobody known has signed.
func TestVerify(t *testing.T) {
	key, stranger := keys(t)["rsa2048"], keys(t)["p256"]
	cert := certificate(t, key)
	image := []byte("\x7fELF and what follows")
	signed, err := Sign(image, key, cert, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Sign(signed, stranger, certificate(t, stranger), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(signed)
	changed[5] ^= 1
	value := bytes.Clone(signed)
	value[len(signed)-len(Magic)-trailer-1] ^= 1
	for name, c := range map[string]struct {
		file []byte
		want error
	}{
		"as signed":             {signed, nil},
		"content changed":       {changed, ErrChanged},
		"signature changed":     {value, ErrChanged},
		"signed by another key": {again, ErrUnknownKey},
		"the old kind":          {slices.Concat(image, make([]byte, 12), []byte(Magic)), ErrUnsupported},
	} {
		back, sig, err := Split(c.file)
		if err != nil || len(back) != len(image) {
			t.Errorf("%s: split: %v", name, err)
			continue
		}
		if _, err := sig.Verify(back, []*x509.Certificate{cert}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := Sign(image, stranger, cert, crypto.SHA256); err == nil {
		t.Error("signed with a certificate that is not the key's")
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	f.Add([]byte(Magic))
	f.Add(slices.Concat(make([]byte, 40), []byte{0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 20}, []byte(Magic)))
	f.Fuzz(func(t *testing.T, file []byte) {
		image, sig, err := Split(file)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(file, image) {
			t.Error("what is signed is not the beginning of the file")
		}
		if sig == nil && len(image) != len(file) || sig != nil && len(image) == len(file) {
			t.Error("a signature of no bytes")
		}
		if sig != nil {
			_, _ = sig.HashName(), sig.Names(&x509.Certificate{SerialNumber: new(big.Int)})
		}
	})
}

// examples are modules to sign: those of Debian's kernels, which are signed already, would
// do as well, but a file that has no signature shows more.
func examples(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/lib/modules/6.1.*/kernel/drivers/block/*.ko")
	if err != nil || len(all) == 0 {
		t.Fatalf("modules of 6.1: %q, %v", all, err)
	}
	var unsigned []string
	for i, path := range all[:3] {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		image, _, err := Split(data)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), string(rune('a'+i))+".ko")
		if err := os.WriteFile(name, image, 0o644); err != nil {
			t.Fatal(err)
		}
		unsigned = append(unsigned, name)
	}
	return unsigned
}

func keys(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	all := make(map[string]crypto.Signer)
	for name, bits := range map[string]int{"rsa2048": 2048, "rsa4096": 4096} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = key
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all["p256"] = key
	return all
}

// serial makes each certificate one of its own.
var serial int64

func certificate(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	serial++
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "modsig", Organization: []string{"test"}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func write(t *testing.T, dir string, key crypto.Signer, cert *x509.Certificate) (pemKey, derCert string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pemKey, derCert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.der")
	block := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for path, data := range map[string][]byte{pemKey: block, derCert: cert.Raw} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pemKey, derCert
}
