package vm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"

	"kmodctl/internal/efi"
)

// selfSigned is a certificate in DER.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Secure Boot is on when the store has an owner's key: the kernel locks itself down. The other ways to boot are tested where
// modules are (cmd/kmodctl).
func TestUEFI(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.12")
	pk := efi.FormatLists([]efi.Entry{{Kind: efi.X509, Data: selfSigned(t)}})
	out := run(t, Config{
		Image: image, Args: []string{"look", "/sys/kernel/security/lockdown", "/sys/module/module/parameters/sig_enforce"},
		UEFI: &UEFI{Variables: []Variable{{Name: "PK", Owner: efi.Global, Attributes: 0x27, Data: pk}}},
	})
	if !strings.Contains(out, "none [integrity]") || !strings.Contains(out, "Y") {
		t.Errorf("the kernel is not locked down: %s", out)
	}
}

func TestUEFIStore(t *testing.T) {
	for name, flash := range map[string][]byte{
		"empty": nil, "short": make([]byte, 40), "header beyond its end": bytes.Repeat([]byte{0xff}, 60), "no store": make([]byte, 4096),
	} {
		if err := fill(flash, nil); err == nil {
			t.Errorf("%s: filled", name)
		}
	}
	u := UEFI{Variables: []Variable{{Name: "large", Data: make([]byte, 1<<20)}}}
	if _, err := u.store(); err == nil || !strings.Contains(err.Error(), "large does not fit") {
		t.Errorf("a variable larger than the store: %v", err)
	}
}
