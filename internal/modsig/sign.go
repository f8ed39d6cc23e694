package modsig

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"slices"
)

// Sign returns image with a signature of key at its end, in place of one that
// it has. cert is the key's certificate. The signature names it by issuer and
// serial, as sign-file does without -k.
//
// RSA and ECDSA keys only: the kernel's modules know no others (Ed25519 fails
// in sign-file too). Debian's 6.1 takes RSA with sha256 and below.
func Sign(image []byte, key crypto.Signer, cert *x509.Certificate, hash crypto.Hash) ([]byte, error) {
	image, _, err := Split(image)
	if err != nil {
		return nil, err
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("sign: the certificate %q is not that of the key", cert.Subject.CommonName)
	}
	der, err := message(image, key, cert, hash)
	if err != nil {
		return nil, err
	}
	info := make([]byte, trailer)
	info[2] = byte(slices.Index(kinds, PKCS7))
	binary.BigEndian.PutUint32(info[8:], uint32(len(der)))
	return slices.Concat(image, der, info, []byte(Magic)), nil
}

// message is the PKCS#7 message that CMS_sign(3) makes with the flags of sign-file:
// CMS_NOCERTS, CMS_BINARY, CMS_DETACHED, CMS_NOATTR.
func message(image []byte, key crypto.Signer, cert *x509.Certificate, hash crypto.Hash) ([]byte, error) {
	i := slices.IndexFunc(algorithms, func(a algorithm) bool { return a.hash == hash })
	if i < 0 {
		return nil, fmt.Errorf("sign: the kernel knows no hash %v", hash)
	}
	digest := pkix.AlgorithmIdentifier{Algorithm: algorithms[i].oid}
	signed := pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}
	switch key.Public().(type) {
	case *rsa.PublicKey:
	case *ecdsa.PublicKey:
		signed = pkix.AlgorithmIdentifier{Algorithm: algorithms[i].ecdsa}
	default:
		return nil, fmt.Errorf("sign: the kernel takes RSA and ECDSA keys, not %T", key.Public())
	}
	value, err := key.Sign(rand.Reader, digestOf(image, hash), hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	signer, err1 := asn1.Marshal(issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber})
	content, err2 := asn1.Marshal(encapsulated{oidData})
	if err := cmp.Or(err1, err2); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return asn1.Marshal(contentInfo{oidSignedData, signedData{
		Version: 1,
		Digests: []pkix.AlgorithmIdentifier{digest},
		Content: asn1.RawValue{FullBytes: content},
		Signers: []signerInfo{{Version: 1, SignerID: asn1.RawValue{FullBytes: signer}, Digest: digest, Algorithm: signed, Value: value}},
	}})
}
