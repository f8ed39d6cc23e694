package ko

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/internal/modsig"
)

// TestSignFile reads what the kernel's own scripts/sign-file writes, with the
// signer named by issuer and serial, and by subject key id (-k).
func TestSignFile(t *testing.T) {
	signFile := filepath.Join("/lib/modules", installedKernel(t, "6.1."), "build/scripts/sign-file")
	if _, err := os.Stat(signFile); err != nil {
		t.Fatalf("apt install linux-kbuild-6.1: %v", err)
	}
	dir := t.TempDir()
	key, cert := signingKey(t, dir)
	for _, c := range []struct {
		hash string
		args []string
		want Signature
	}{
		{"sha512", nil, Signature{IDType: "PKCS#7", Signer: "kmodctl test", KeyID: "0A:FF:01", Hash: "sha512"}},
		{"sha256", []string{"-k"}, Signature{IDType: "PKCS#7", KeyID: "CA:FE:00:01", Hash: "sha256"}},
	} {
		module := filepath.Join(dir, "m.ko")
		if err := os.WriteFile(module, x86().bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		args := append(c.args, c.hash, key, cert, module)
		if out, err := exec.Command(signFile, args...).CombinedOutput(); err != nil {
			t.Fatalf("sign-file %q: %v\n%s", args, err, out)
		}
		info, err := Open(module)
		if err != nil {
			t.Fatal(err)
		}
		got := *info.Signature
		if n := len(strings.Split(got.Bytes, ":")); n != 256 {
			t.Errorf("%s: signature of %d bytes, the key has 256", c.hash, n)
		}
		got.Bytes = ""
		if got != c.want {
			t.Errorf("signature %+v, want %+v", got, c.want)
		}
	}
}

// signingKey writes a new RSA key with its self-signed certificate.
func signingKey(t *testing.T, dir string) (key, cert string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	name := pkix.Name{CommonName: "kmodctl test", Organization: []string{"none"}}
	template := &x509.Certificate{SerialNumber: big.NewInt(0x0aff01), Subject: name, SubjectKeyId: []byte{0xca, 0xfe, 0, 1}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	for path, block := range map[string]*pem.Block{
		key:  {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)},
		cert: {Type: "CERTIFICATE", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return key, cert
}

// trailer is struct module_signature and the marker behind a signature.
func trailer(kind byte, size int) []byte {
	b := []byte{0, 0, kind, 0, 0, 0, 0, 0}
	return append(binary.BigEndian.AppendUint32(b, uint32(size)), modsig.Magic...)
}

func TestBadSignature(t *testing.T) {
	module := x86().bytes()
	for name, tail := range map[string][]byte{
		"longer than the file": trailer(2, len(module)),
		"not DER":              append([]byte("garbage"), trailer(2, 7)...),
		"empty":                trailer(2, 0),
		"stray fields":         append([]byte("garbage\x01\x01"), trailer(2, 9)[2:]...),
	} {
		_, err := Read(append(module[:len(module):len(module)], tail...))
		var bad *FormatError
		if !errors.Is(err, ErrMalformed) || !errors.As(err, &bad) || bad.Section != signatureSection {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read([]byte(modsig.Magic)); !errors.Is(err, ErrMalformed) {
		t.Errorf("marker alone: %v", err)
	}
	old, err := Read(append(module[:len(module):len(module)], append([]byte("signed"), trailer(1, 6)...)...))
	if err != nil || *old.Signature != (Signature{IDType: "X509"}) {
		t.Errorf("signature of a kernel before 4.3: %+v, %v", old, err)
	}
	// The kernel takes it for unsigned, unless it insists on signatures.
	other, err := Read(append(module[:len(module):len(module)], append([]byte("garbage"), trailer(9, 7)...)...))
	if err != nil || *other.Signature != (Signature{IDType: "type 9"}) {
		t.Errorf("signature of no known kind: %+v, %v", other, err)
	}
}
