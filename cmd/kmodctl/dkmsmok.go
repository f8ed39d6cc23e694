package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path"
	"path/filepath"
	"time"
)

// generateMOK makes the pair of files that DKMS signs modules with, unless it is there: a key and its certificate for
// the firmware's list (Machine Owner Key). One of the two alone is never overwritten.
func (e *env) generateMOK() error {
	tree, err := e.inside(dkmsTreePath)
	if err != nil {
		return err
	}
	key, cert := filepath.Join(tree, "mok.key"), filepath.Join(tree, "mok.pub")
	_, noKey := os.Stat(key)
	_, noCert := os.Stat(cert)
	switch {
	case noKey == nil && noCert == nil:
		e.say("nothing to do: %s and %s are there", path.Join(dkmsTreePath, "mok.key"), path.Join(dkmsTreePath, "mok.pub"))
		return nil
	case noKey == nil || noCert == nil:
		return fmt.Errorf("generate_mok: only one of %s and %s is there, and is not overwritten: move it away", key, cert)
	case !errors.Is(noKey, fs.ErrNotExist):
		return noKey
	case e.dryRun:
		e.would("make %s and %s", key, cert)
		return nil
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159))
	if err != nil {
		return err
	}
	now := time.Now()
	name := pkix.Name{CommonName: "DKMS module signing key"} // what mokutil --list-enrolled shows, as it does of DKMS
	template := &x509.Certificate{SerialNumber: serial, Subject: name, NotBefore: now, NotAfter: now.AddDate(100, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	if err := writeNew(key, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return err
	}
	if err := writeNew(cert, 0o644, der); err != nil {
		return err
	}
	e.changed("made %s and %s: mokutil --import %[2]s asks the firmware to trust what is signed with it", key, cert)
	return nil
}

// writeNew writes a file that must not be there.
func writeNew(name string, mode fs.FileMode, text []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}
