package loader_test

import (
	"crypto"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
	"kmodctl/internal/modsig"
	"kmodctl/loader"
)

// What a key of the firmware has signed is compared with its signature; what a stranger has signed cannot be.
func TestCheckOfFirmwareSignature(t *testing.T) {
	release := installed(t)[0]
	index := loader.OpenIndex("/", "/lib/modules/"+release)
	source, _, _ := index.Find("dummy")
	file, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if file, _, err = ko.Decompress(file); err != nil {
		t.Fatal(err)
	}
	image, _, err := modsig.Split(file)
	if err != nil {
		t.Fatal(err)
	}
	key, cert := stranger(t, "a stranger")
	signed, err := modsig.Sign(image, key, cert, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	tampered := append([]byte{}, signed...)
	tampered[len(image)-1] ^= 1 // of the section headers' last byte, which is padding
	for _, c := range []struct {
		name    string
		file    []byte
		trusted []*x509.Certificate
		want    bool
	}{
		{"signed", signed, []*x509.Certificate{cert}, false},
		{"changed", tampered, []*x509.Certificate{cert}, true},
		{"changed, by a stranger", tampered, nil, false},
	} {
		path := filepath.Join(t.TempDir(), "dummy.ko")
		if err := os.WriteFile(path, c.file, 0o644); err != nil {
			t.Fatal(err)
		}
		target := loader.NewTarget("/", release, index, nil, nil)
		target.Trusted = func() []*x509.Certificate { return c.trusted }
		found := false
		for _, f := range loader.Check(insertion("dummy", path, ""), target) {
			found = found || f.Cause == loader.CauseSignatureDiffers && f.Errno == unix.EKEYREJECTED && f.Severity == loader.Refused
		}
		if found != c.want {
			t.Errorf("%s: found %v, want %v", c.name, found, c.want)
		}
	}
}
