package keys

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/youmark/pkcs8"
	"golang.org/x/sys/unix"
)

// ErrEncrypted says that the private key has a passphrase, and none was given.
var ErrEncrypted = errors.New("the key has a passphrase")

// errOldCipher is a key as openssl wrote it before 1.0: its cipher is weak, and a wrong passphrase is not noticed.
var errOldCipher = errors.New("the key is encrypted in OpenSSL's old form; openssl pkcs8 -topk8 writes the new one")

// keyLimit is the size in bytes of a file of a private key: one of RSA 16384 has 12 KB.
const keyLimit = 1 << 16

// readPrivate opens a file with a private key and reads it. It is refused, *UnsafeError, if others than
// its owner, who is root or the caller, may read or write it; lax leaves that out.
func readPrivate(name string, lax bool) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readSafe(f, lax)
}

func readSafe(f *os.File, lax bool) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", f.Name())
	}
	if uid, safe := safe(info); !safe && !lax {
		return nil, &UnsafeError{f.Name(), info.Mode(), uid}
	}
	text, err := io.ReadAll(io.LimitReader(f, keyLimit+1))
	if len(text) > keyLimit {
		return nil, fmt.Errorf("read %s: more than %d bytes", f.Name(), keyLimit)
	}
	return text, err
}

// safe reports whether a private key can be read by its group at most, which akmods does, and was written by root or the caller.
func safe(info fs.FileInfo) (uid int, ok bool) {
	uid = int(info.Sys().(*syscall.Stat_t).Uid)
	return uid, info.Mode().Perm()&0o027 == 0 && (uid == 0 || uid == os.Geteuid())
}

// parsePrivate reads a private key: PEM, of PKCS#8, with a passphrase or without, PKCS#1 and SEC 1, which may
// stand beside a certificate; or PKCS#8 in DER. The passphrase is asked for only if there is one.
func parsePrivate(text []byte, passphrase func() ([]byte, error)) (crypto.Signer, error) {
	der := text
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
			der = block.Bytes
		case "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errOldCipher
			}
			return asSigner(x509.ParsePKCS1PrivateKey(block.Bytes))
		case "EC PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errOldCipher
			}
			return asSigner(x509.ParseECPrivateKey(block.Bytes))
		}
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err == nil {
		return asSigner(key, nil)
	}
	der = encryptedPart(text)
	if der == nil {
		return nil, errors.New("not a private key in PEM, or PKCS#8 in DER") // what the parser says might quote it
	}
	if passphrase == nil {
		return nil, ErrEncrypted
	}
	word, err := passphrase()
	if err != nil {
		return nil, err
	}
	defer clear(word)
	key, _, err = pkcs8.ParsePrivateKey(der, word)
	if err != nil {
		return nil, ErrPassphrase
	}
	return asSigner(key, nil)
}

// asSigner is a key that can sign; what a parser says of a broken one is left out, since it might quote it.
func asSigner(key any, err error) (crypto.Signer, error) {
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("not a private key that signs")
	}
	return signer, nil
}

// encryptedPart is the EncryptedPrivateKeyInfo (RFC 5958) in the file of a private key that has a passphrase, nil for one that has none.
func encryptedPart(text []byte) []byte {
	der := text
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "ENCRYPTED PRIVATE KEY" {
			return block.Bytes
		}
		der = nil
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return nil
	}
	return der
}

// passphraseLimit is the length in bytes of a passphrase.
const passphraseLimit = 1024

// ReadPassphrase is the first line of a file, which may be a pipe. One that others may read is refused: *UnsafeError.
func ReadPassphrase(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if uid, safe := safe(info); info.Mode().IsRegular() && !safe {
		return nil, &UnsafeError{name, info.Mode(), uid}
	}
	text, err := io.ReadAll(io.LimitReader(f, passphraseLimit+1))
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	if len(line) > passphraseLimit {
		return nil, fmt.Errorf("read %s: more than %d bytes", name, passphraseLimit)
	}
	return line, nil
}
