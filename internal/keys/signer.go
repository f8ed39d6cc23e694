package keys

import (
	"context"
	"crypto"
	"fmt"

	"kmodctl/internal/modsig"
)

// Signer puts signatures at the end of modules.
type Signer interface {
	// Sign returns image with its signature appended, in place of one that it has. hash is a name
	// that modsig.HashByName knows.
	Sign(ctx context.Context, image []byte, hash string) (signed []byte, err error)
}

// Signer opens the private key of k, or gets its command ready. passphrase is asked if the key has
// one; nil is an error then, ErrEncrypted. Errors: *UnsafeError, *MismatchError, ErrPassphrase.
func (s Store) Signer(k Key, passphrase func() ([]byte, error)) (Signer, error) {
	if len(k.Command) > 0 {
		return newCommandSigner(k)
	}
	text, err := readPrivate(k.File, k.lax)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", k.Name, err)
	}
	defer clear(text)
	private, err := parsePrivate(text, passphrase)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %s: %w", k.Name, k.File, err)
	}
	if !fits(private, k) {
		return nil, fmt.Errorf("open key %s: %w", k.Name, &MismatchError{k.File, k.Cert.Subject.CommonName})
	}
	return fileSigner{k, private}, nil
}

func fits(private crypto.Signer, k Key) bool {
	public, ok := private.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(k.Cert.PublicKey)
}

// fileSigner signs with a private key that has been read.
type fileSigner struct {
	key     Key
	private crypto.Signer
}

func (f fileSigner) Sign(_ context.Context, image []byte, hash string) ([]byte, error) {
	h, ok := modsig.HashByName(hash)
	if !ok {
		return nil, fmt.Errorf("sign: %w", &HashError{hash})
	}
	return modsig.Sign(image, f.private, f.key.Cert, h)
}

// HashError is the name of a hash that no kernel knows.
type HashError struct{ Name string }

func (e *HashError) Error() string { return fmt.Sprintf("the kernel knows no hash %q", e.Name) }
