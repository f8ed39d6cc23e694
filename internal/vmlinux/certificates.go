package vmlinux

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
)

// Certificates finds the X.509 certificates that are built into a vmlinux: those of
// .builtin_trusted_keys (CONFIG_SYSTEM_TRUSTED_KEYS and the key that signed the kernel's own
// modules; certs/system_certificates.S). They stand one after another in DER, without a
// symbol that a packed kernel keeps, so what looks like a certificate and is one is taken.
func Certificates(vmlinux []byte) []*x509.Certificate {
	var found []*x509.Certificate
	long := []byte{0x30, 0x82} // a SEQUENCE whose length has two bytes, as every certificate of 256 to 65,535 bytes
	for rest := vmlinux; ; {
		i := bytes.Index(rest, long)
		if i < 0 || len(rest)-i < 8 {
			return found
		}
		rest = rest[i:]
		size := 4 + int(binary.BigEndian.Uint16(rest[2:]))
		if size <= len(rest) && bytes.HasPrefix(rest[4:], long) { // a certificate begins with what was signed, a SEQUENCE too
			if cert, err := x509.ParseCertificate(rest[:size]); err == nil {
				found = append(found, cert)
				rest = rest[size:]
				continue
			}
		}
		rest = rest[1:]
	}
}
