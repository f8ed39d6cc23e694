// Package keys are the keys that a machine signs its kernel modules with: which there are, which
// signs today, and the way to its private half, which is opened to sign and by nothing else.
//
// A key is a folder of /etc/kmodctl/keys (0700, of root), made elsewhere in it and renamed to its name,
// so that there is never half a pair:
//
//	mok1/key.pem    the private key, PKCS#8, 0600
//	mok1/cert.der   its certificate, as mokutil --import takes it
//	mok1/key.json   when it came, and from where
//	active -> mok1  the key that signs
//	next -> mok2    the one that will, once the firmware trusts it
//
// The configuration can name another key instead, or a command that signs (Config).
package keys

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Folder is where keys are, inside the root.
const Folder = "/etc/kmodctl/keys"

// A key's state.
const (
	StateActive = "active" // it signs
	StateNext   = "next"   // it will sign, once it is trusted: both are known until then
	StateOld    = "old"    // it signed once, or the configuration names another
)

// ErrNoKey says that there is no key that signs.
var ErrNoKey = errors.New("this machine has no signing key")

// ErrPassphrase says that the passphrase of a private key is wrong.
var ErrPassphrase = errors.New("wrong passphrase")

// Key is what is known of a key without its private half.
type Key struct {
	Name    string // "mok1"; Configured for the one that the configuration names
	State   string
	Cert    *x509.Certificate
	Created time.Time // when this machine got it; zero when the configuration names it
	Origin  string    // the file that it was imported from, "" when it was made here
	File    string    // the private key, as this process opens it; "" when Command signs
	Command []string  // what signs instead, see Config

	lax bool // who may read the file is not looked at
}

// Configured is the name of the key that the configuration names.
const Configured = "configured"

// Fingerprint is the SHA-256 of the certificate, in lower case hex: what names a signer elsewhere.
func (k Key) Fingerprint() string {
	sum := sha256.Sum256(k.Cert.Raw)
	return hex.EncodeToString(sum[:])
}

// SHA1 is the fingerprint that mokutil and the blue screen show.
func (k Key) SHA1() string {
	sum := sha1.Sum(k.Cert.Raw)
	return hex.EncodeToString(sum[:])
}

// UnsafeError is a private key that others than its owner could have read, or put there.
type UnsafeError struct {
	File string
	Mode fs.FileMode
	UID  int
}

func (e *UnsafeError) Error() string {
	return fmt.Sprintf("%s is not safe: it has mode %04o and belongs to uid %d", e.File, e.Mode.Perm(), e.UID)
}

// MismatchError is a certificate that is not that of the private key.
type MismatchError struct{ Key, Cert string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the certificate %s is not that of the key %s", e.Cert, e.Key)
}

// WaitingError is another key that waits to become the one that signs: there is one such at most.
type WaitingError struct{ Name string }

func (e *WaitingError) Error() string { return fmt.Sprintf("key %s is the next one already", e.Name) }
