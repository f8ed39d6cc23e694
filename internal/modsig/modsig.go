// Package modsig is the signature at the end of a kernel module: it writes what
// the kernel's scripts/sign-file writes, byte for byte with RSA keys, takes it
// off, says who made it, and verifies it as the kernel does
// (kernel/module/signing.c, crypto/asymmetric_keys/pkcs7_verify.c).
//
// A signed module is
//
//	ELF, PKCS#7 message in DER, struct module_signature, Magic
//
// and the message (CMS, RFC 5652) signs all bytes before it. Modules are signed
// after they are stripped and before they are compressed.
package modsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	_ "crypto/sha1" // the hashes of CONFIG_MODULE_SIG_HASH
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// Magic ends a signed module: MODULE_SIG_STRING, include/linux/module_signature.h.
const Magic = "~Module signature appended~\n"

// The kinds of signature, id_type of struct module_signature.
const (
	PGP   = "PGP"  // kernels before 3.7 only
	X509  = "X509" // kernels before 4.3 only
	PKCS7 = "PKCS#7"
)

var kinds = []string{PGP, X509, PKCS7}

var (
	// ErrUnknownKey: none of the certificates is the one that the signature names.
	ErrUnknownKey = errors.New("signed by a key that is not known")
	// ErrChanged: the named key did not sign these bytes.
	ErrChanged = errors.New("changed after it was signed")
	// ErrUnsupported: a signature of a kind that is not verified here: no PKCS#7, signed attributes, an unknown algorithm.
	ErrUnsupported = errors.New("unsupported kind of signature")
)

// FormatError is a file whose end says that it is signed, and that holds no signature
// which can be parsed. Every kernel refuses it with EBADMSG, also one that takes unsigned modules.
type FormatError struct {
	Offset int64 // in bytes, where the signature should begin
	Err    error
}

func (e *FormatError) Error() string { return fmt.Sprintf("offset %d: %v", e.Offset, e.Err) }
func (e *FormatError) Unwrap() error { return e.Err }

// Signature says who signed a module and how. Of a kind other than PKCS7 only Kind is set.
type Signature struct {
	Kind   string      // PKCS7, X509, PGP, or "type N" of no kernel
	Issuer []byte      // DER of the distinguished name of the certificate's issuer; nil when KeyID names the key
	Serial *big.Int    // of the certificate; nil when KeyID names the key
	KeyID  []byte      // subject key id of the certificate (sign-file -k); nil when Issuer and Serial name it
	Hash   crypto.Hash // 0 when unknown: HashOID tells
	Value  []byte      // the signature proper

	HashOID   asn1.ObjectIdentifier
	Algorithm asn1.ObjectIdentifier // of the key and its signature
	attrs     bool                  // signed attributes: not what sign-file writes
}

// trailer is the size of struct module_signature in bytes: algo, hash, id_type,
// signer_len, key_id_len, three of padding, and sig_len, big-endian.
const trailer = 12

// Split takes a module apart into what is signed and its last signature, nil if it has
// none. Errors: *FormatError.
func Split(file []byte) ([]byte, *Signature, error) {
	body, ok := bytes.CutSuffix(file, []byte(Magic))
	if !ok {
		return file, nil, nil
	}
	if len(body) < trailer {
		return nil, nil, &FormatError{0, fmt.Errorf("%d bytes before the marker", len(body))}
	}
	body, info := body[:len(body)-trailer], body[len(body)-trailer:]
	size := uint64(binary.BigEndian.Uint32(info[8:])) + uint64(info[3]) + uint64(info[4])
	if size >= uint64(len(body)) {
		return nil, nil, &FormatError{int64(len(body)), fmt.Errorf("%d bytes long, the file has %d before it", size, len(body))}
	}
	body, der := body[:len(body)-int(size)], body[len(body)-int(size):]
	sig := &Signature{Kind: fmt.Sprintf("type %d", info[2])}
	if int(info[2]) < len(kinds) {
		sig.Kind = kinds[info[2]]
	}
	if sig.Kind == PKCS7 {
		// Since 4.3 all but the length is in the message (mod_check_sig, kernel/module_signature.c).
		if rest := slices.Concat(info[:2], info[3:8]); !bytes.Equal(rest, make([]byte, len(rest))) {
			return nil, nil, &FormatError{int64(len(body) + len(der)), errors.New("fields of the trailer that are not used are not zero")}
		}
		if err := sig.parse(der); err != nil {
			return nil, nil, &FormatError{int64(len(body)), err}
		}
	}
	return body, sig, nil
}

// The parts of a CMS message that sign-file writes, RFC 5652 section 5.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version int
		Digests []pkix.AlgorithmIdentifier `asn1:"set"`
		Content asn1.RawValue              // of type data, and absent: the module is signed where it lies
		Certs   asn1.RawValue              `asn1:"optional,tag:0"`
		CRLs    asn1.RawValue              `asn1:"optional,tag:1"`
		Signers []signerInfo               `asn1:"set"`
	}
	signerInfo struct {
		Version     int
		SignerID    asn1.RawValue // issuerAndSerial, or [0] subject key id
		Digest      pkix.AlgorithmIdentifier
		SignedAttrs asn1.RawValue `asn1:"optional,tag:0"`
		Algorithm   pkix.AlgorithmIdentifier
		Value       []byte
	}
	issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	encapsulated struct{ Type asn1.ObjectIdentifier }
)

var (
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// algorithm is a hash and its names.
type algorithm struct {
	name  string // CONFIG_MODULE_SIG_HASH
	hash  crypto.Hash
	oid   asn1.ObjectIdentifier
	ecdsa asn1.ObjectIdentifier // ecdsa-with-<hash>
}

var algorithms = []algorithm{
	{"sha1", crypto.SHA1, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}},
	{"sha224", crypto.SHA224, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 1}},
	{"sha256", crypto.SHA256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
	{"sha384", crypto.SHA384, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	{"sha512", crypto.SHA512, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}},
	{"sha3-256", crypto.SHA3_256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 8}, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 10}},
	{"sha3-384", crypto.SHA3_384, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 9}, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 11}},
	{"sha3-512", crypto.SHA3_512, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 10}, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 12}},
}

// HashByName is the hash that the kernel's configuration and sign-file call name, e.g. "sha256".
func HashByName(name string) (crypto.Hash, bool) {
	for _, h := range algorithms {
		if h.name == name {
			return h.hash, true
		}
	}
	return 0, false
}

// HashName is the name of the signature's hash, its dotted object identifier when it has none here.
func (s *Signature) HashName() string {
	for _, h := range algorithms {
		if h.oid.Equal(s.HashOID) {
			return h.name
		}
	}
	return s.HashOID.String()
}

func (s *Signature) parse(der []byte) error {
	var msg contentInfo
	if _, err := asn1.Unmarshal(der, &msg); err != nil {
		return fmt.Errorf("parse PKCS#7: %w", err)
	}
	if len(msg.Content.Signers) == 0 {
		return errors.New("parse PKCS#7: nobody signed")
	}
	signer := msg.Content.Signers[0]
	s.HashOID, s.Algorithm, s.Value = signer.Digest.Algorithm, signer.Algorithm.Algorithm, signer.Value
	for _, h := range algorithms {
		if h.oid.Equal(s.HashOID) {
			s.Hash = h.hash
		}
	}
	s.attrs = len(signer.SignedAttrs.FullBytes) > 0
	if id := signer.SignerID; id.Class == asn1.ClassContextSpecific && id.Tag == 0 {
		s.KeyID = id.Bytes
		return nil
	}
	var id issuerAndSerial
	if _, err := asn1.Unmarshal(signer.SignerID.FullBytes, &id); err != nil {
		return fmt.Errorf("parse PKCS#7 signer: %w", err)
	}
	s.Issuer, s.Serial = id.Issuer.FullBytes, id.Serial
	return nil
}

// Names reports whether cert is the certificate that the signature names.
func (s *Signature) Names(cert *x509.Certificate) bool {
	if s.KeyID != nil {
		return bytes.Equal(s.KeyID, cert.SubjectKeyId)
	}
	return s.Serial != nil && s.Serial.Cmp(cert.SerialNumber) == 0 && bytes.Equal(s.Issuer, cert.RawIssuer)
}

// Verify returns the one of certs that signed image, what Split gave with s. A
// certificate's dates and uses are not looked at, as the kernel does not. Errors:
// ErrUnknownKey, ErrChanged, ErrUnsupported.
func (s *Signature) Verify(image []byte, certs []*x509.Certificate) (*x509.Certificate, error) {
	if s.Kind != PKCS7 || s.attrs || s.Hash == 0 {
		return nil, ErrUnsupported
	}
	i := slices.IndexFunc(certs, s.Names)
	if i < 0 {
		return nil, ErrUnknownKey
	}
	digest := digestOf(image, s.Hash)
	switch key := certs[i].PublicKey.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(key, s.Hash, digest, s.Value) != nil {
			return nil, ErrChanged
		}
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, digest, s.Value) {
			return nil, ErrChanged
		}
	default:
		return nil, ErrUnsupported
	}
	return certs[i], nil
}

func digestOf(image []byte, hash crypto.Hash) []byte {
	h := hash.New()
	h.Write(image)
	return h.Sum(nil)
}
