package ko

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"kmodctl/internal/modsig"
)

// Signature is the signature that sign-file appends to a module, as modinfo(8)
// prints it. Hex is upper case with colons, as there.
type Signature struct {
	IDType string `json:"id_type"`          // "PKCS#7"; "X509" or "PGP" from kernels before 4.3, "type N" from nowhere, and then the rest is empty
	Signer string `json:"signer,omitempty"` // common name of the certificate's issuer
	KeyID  string `json:"key_id,omitempty"` // serial of the certificate, or its subject key id (sign-file -k), hex
	Hash   string `json:"hash,omitempty"`   // "sha256"; the dotted object identifier when unknown
	Bytes  string `json:"bytes,omitempty"`  // the signature proper, hex
}

const (
	signatureSection = "signature" // names the trailer in errors
	derSequence      = 0x30        // first byte of PKCS#7 in DER
)

// splitSignature returns the ELF and the signature, nil when there is none. A
// trailer that cannot be parsed is an error: the kernel refuses it with EBADMSG
// even where it takes unsigned modules (module_sig_check in kernel/module/signing.c).
func splitSignature(data []byte) ([]byte, *Signature, error) {
	image, s, err := modsig.Split(data)
	var bad *modsig.FormatError
	if errors.As(err, &bad) {
		return nil, nil, &FormatError{Section: signatureSection, Offset: bad.Offset, Reason: bad.Err.Error(), Err: ErrMalformed}
	}
	if s == nil {
		return image, nil, nil
	}
	sig := &Signature{IDType: s.Kind, KeyID: colonHex(s.KeyID), Hash: s.HashName(), Bytes: colonHex(s.Value)}
	if s.Serial != nil {
		var issuer pkix.RDNSequence
		asn1.Unmarshal(s.Issuer, &issuer) // one that is no name has no common name
		sig.KeyID, sig.Signer = colonHex(s.Serial.Bytes()), commonName(issuer)
	}
	return image, sig, nil
}

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// commonName returns the first CN of a distinguished name.
func commonName(name pkix.RDNSequence) string {
	for _, set := range name {
		for _, attr := range set {
			if cn, ok := attr.Value.(string); ok && attr.Type.Equal(oidCommonName) {
				return cn
			}
		}
	}
	return ""
}

// colonHex writes b as 4E:0A:D1.
func colonHex(b []byte) string {
	return strings.ReplaceAll(fmt.Sprintf("% X", b), " ", ":")
}
