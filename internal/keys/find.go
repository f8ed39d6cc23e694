package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Pair is a key and its certificate that something else on this machine has, and that could be imported.
type Pair struct {
	Owner   string `json:"owner"` // whose it is: "DKMS"
	Key     string `json:"key"`   // files, as named inside the root
	Cert    string `json:"cert"`
	Subject string `json:"subject,omitempty"` // of the certificate
	SHA256  string `json:"sha256,omitempty"`  // of the certificate, as Key.Fingerprint
	Why     string `json:"why,omitempty"`     // it cannot be imported; "" if it can
	Err     error  `json:"-"`                 // the same
}

// places are where others keep the key that the firmware of a machine trusts (Machine Owner Key).
var places = []Pair{
	{Owner: "Ubuntu's shim-signed", Key: "/var/lib/shim-signed/mok/MOK.priv", Cert: "/var/lib/shim-signed/mok/MOK.der"}, // update-secureboot-policy(8)
	{Owner: "DKMS", Key: "/var/lib/dkms/mok.key", Cert: "/var/lib/dkms/mok.pub"},                                        // dkms(8), framework.conf
	{Owner: "akmods", Key: "/etc/pki/akmods/private/private_key.priv", Cert: "/etc/pki/akmods/certs/public_key.der"},    // kmodgenca(8)
}

// Find returns the pairs of keys that others have on this machine. One of which only one file is there is not a pair.
func (s Store) Find() []Pair {
	var found []Pair
	for _, p := range places {
		if s.look(&p) {
			found = append(found, p)
		}
	}
	return found
}

// look fills in what there is to know of a pair, and reports whether it is there, and not our own.
func (s Store) look(p *Pair) bool {
	key, keyErr := s.root.Path(p.Key)
	text, certErr := s.root.ReadFile(p.Cert)
	if errors.Is(keyErr, fs.ErrNotExist) || errors.Is(certErr, fs.ErrNotExist) {
		return false
	}
	if own, err := s.root.Path(Folder); err == nil && strings.HasPrefix(key, own+"/") {
		return false
	}
	p.Err = errors.Join(keyErr, certErr)
	if certErr == nil {
		cert, err := ParseCertificate(text)
		if err != nil {
			p.Err = fmt.Errorf("read %s: %w", p.Cert, err)
		} else {
			p.Subject, p.SHA256 = cert.Subject.CommonName, Key{Cert: cert}.Fingerprint()
			if p.Err == nil {
				p.Err = tryPair(key, Key{Cert: cert})
			}
		}
	}
	if p.Err != nil {
		p.Why = p.Err.Error()
	}
	return true
}

// tryPair says why a private key cannot be imported; one with a passphrase can.
func tryPair(file string, k Key) error {
	text, err := readPrivate(file, false)
	if err != nil {
		return err
	}
	defer clear(text)
	private, err := parsePrivate(text, nil)
	switch {
	case errors.Is(err, ErrEncrypted):
		return nil
	case err != nil:
		return fmt.Errorf("read %s: %w", file, err)
	case !fits(private, k):
		return &MismatchError{file, k.Cert.Subject.CommonName}
	}
	return nil
}

// Encrypted reports whether the private key of k has a passphrase.
func (s Store) Encrypted(k Key) (bool, error) {
	if k.File == "" {
		return false, nil
	}
	text, err := os.ReadFile(k.File)
	defer clear(text)
	return err == nil && encryptedPart(text) != nil, err
}
