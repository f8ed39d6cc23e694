package keys

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"
)

// lifetime of a certificate, in years: nobody asks for its end when a module is loaded, and a new one is a
// visit at the machine's console.
const lifetime = 100

// oidModules is Red Hat's purpose "signs kernel modules": shim does not start a boot loader or a kernel that is
// signed with such a key, so that who gets at it does not own the boot.
var oidModules = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 2312, 16, 1, 2}

// newPair makes a key of RSA and its certificate.
func (s Store) newPair(name string, n New) (pair, error) {
	private, err := rsa.GenerateKey(rand.Reader, cmp.Or(n.Bits, 2048))
	if err != nil {
		return pair{}, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 159)) // RFC 5280: at most 20 bytes, positive
	if err != nil {
		return pair{}, fmt.Errorf("make key: %w", err)
	}
	id := sha1.Sum(x509.MarshalPKCS1PublicKey(&private.PublicKey)) // RFC 5280, 4.2.1.2, (1)
	now := time.Now().UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: s.subject(name)},
		NotBefore:             now,
		NotAfter:              now.AddDate(lifetime, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{oidModules},
		BasicConstraintsValid: true,
		SubjectKeyId:          id[:],
		AuthorityKeyId:        id[:],
		SignatureAlgorithm:    x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return pair{}, fmt.Errorf("make certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, fmt.Errorf("make certificate: %w", err)
	}
	text, err := encode(private, n.Passphrase)
	return pair{key: text, cert: cert}, err
}

// subjectLimit is the length of a common name in bytes, ub-common-name of RFC 5280.
const subjectLimit = 64

// subject is what the blue screen and mokutil will call the key.
func (s Store) subject(name string) string {
	host, err := os.Hostname()
	if !s.root.IsHost() {
		var text []byte
		text, err = s.root.ReadFile("/etc/hostname")
		host = strings.TrimSpace(string(text))
	}
	if err != nil {
		host = ""
	}
	subject := "kmodctl module signing key " + name + " of " + cmp.Or(host, "this machine")
	return strings.ToValidUTF8(subject[:min(len(subject), subjectLimit)], "")
}
