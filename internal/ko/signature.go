package ko

import (
	"bytes"
	"cmp"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
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
	signatureSection = "signature"                     // names the trailer in errors
	signatureMagic   = "~Module signature appended~\n" // MODULE_SIG_STRING, include/linux/module_signature.h
	derSequence      = 0x30                            // first byte of PKCS#7 in DER
)

// splitSignature takes apart
//
//	ELF, signature, struct module_signature, signatureMagic
//
// and returns the ELF and the signature, nil when the magic is not there. A
// trailer that cannot be parsed is an error: the kernel refuses it with EBADMSG
// even where it takes unsigned modules (module_sig_check in kernel/module/signing.c).
func splitSignature(data []byte) ([]byte, *Signature, error) {
	body, ok := bytes.CutSuffix(data, []byte(signatureMagic))
	if !ok {
		return data, nil, nil
	}
	const trailer = 12 // struct module_signature: algo, hash, id_type, signer_len, key_id_len, 3 unused, be32 sig_len
	if len(body) < trailer {
		return nil, nil, badSignature(0, fmt.Errorf("%d bytes before the marker", len(body)))
	}
	body, info := body[:len(body)-trailer], body[len(body)-trailer:]
	size := uint64(binary.BigEndian.Uint32(info[8:])) + uint64(info[3]) + uint64(info[4])
	if size >= uint64(len(body)) {
		return nil, nil, badSignature(len(body), fmt.Errorf("%d bytes long, the file has %d before it", size, len(body)))
	}
	body, der := body[:len(body)-int(size)], body[len(body)-int(size):]
	switch info[2] {
	case 0:
		return body, &Signature{IDType: "PGP"}, nil
	case 1:
		return body, &Signature{IDType: "X509"}, nil
	case 2:
		// Since 4.3 all but the length is in the PKCS#7 message (mod_check_sig, kernel/module_signature.c).
		if rest := slices.Concat(info[:2], info[3:8]); !bytes.Equal(rest, make([]byte, len(rest))) {
			return nil, nil, badSignature(len(body)+len(der), errors.New("fields of the trailer that are not used are not zero"))
		}
		sig, err := parsePKCS7(der)
		if err != nil {
			return nil, nil, badSignature(len(body), err)
		}
		return body, sig, nil
	}
	return body, &Signature{IDType: fmt.Sprintf("type %d", info[2])}, nil
}

func badSignature(offset int, cause error) error {
	return &FormatError{Section: signatureSection, Offset: int64(offset), Reason: cause.Error(), Err: ErrMalformed}
}

// What is read of a CMS message, RFC 5652.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version int
		Digests asn1.RawValue
		Content asn1.RawValue
		Certs   asn1.RawValue `asn1:"optional,tag:0"`
		CRLs    asn1.RawValue `asn1:"optional,tag:1"`
		Signers []signerInfo  `asn1:"set"`
	}
	signerInfo struct {
		Version     int
		SignerID    asn1.RawValue // issuerAndSerial, or [0] subject key id
		Digest      pkix.AlgorithmIdentifier
		SignedAttrs asn1.RawValue `asn1:"optional,tag:0"`
		Algorithm   pkix.AlgorithmIdentifier
		Signature   []byte
	}
	issuerAndSerial struct {
		Issuer pkix.RDNSequence
		Serial *big.Int
	}
)

var (
	oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
	hashNames     = map[string]string{ // those of CONFIG_MODULE_SIG_HASH
		"1.3.14.3.2.26":           "sha1",
		"2.16.840.1.101.3.4.2.1":  "sha256",
		"2.16.840.1.101.3.4.2.2":  "sha384",
		"2.16.840.1.101.3.4.2.3":  "sha512",
		"2.16.840.1.101.3.4.2.4":  "sha224",
		"2.16.840.1.101.3.4.2.8":  "sha3-256",
		"2.16.840.1.101.3.4.2.9":  "sha3-384",
		"2.16.840.1.101.3.4.2.10": "sha3-512",
	}
)

// parsePKCS7 reads who signed and how out of a PKCS#7 message; it verifies nothing.
func parsePKCS7(der []byte) (*Signature, error) {
	var msg contentInfo
	if _, err := asn1.Unmarshal(der, &msg); err != nil {
		return nil, fmt.Errorf("parse PKCS#7: %w", err)
	}
	if len(msg.Content.Signers) == 0 {
		return nil, errors.New("parse PKCS#7: nobody signed")
	}
	signer := msg.Content.Signers[0]
	hash := signer.Digest.Algorithm.String()
	sig := &Signature{IDType: "PKCS#7", Hash: cmp.Or(hashNames[hash], hash), Bytes: colonHex(signer.Signature)}
	if id := signer.SignerID; id.Class == asn1.ClassContextSpecific && id.Tag == 0 {
		sig.KeyID = colonHex(id.Bytes)
		return sig, nil
	}
	var id issuerAndSerial
	if _, err := asn1.Unmarshal(signer.SignerID.FullBytes, &id); err != nil {
		return nil, fmt.Errorf("parse PKCS#7 signer: %w", err)
	}
	sig.KeyID = colonHex(id.Serial.Bytes())
	sig.Signer = commonName(id.Issuer)
	return sig, nil
}

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
