package keys

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kmodctl/internal/modsig"
)

// CommandLimit is how long a signer command may take for one module: somebody may have to touch a token.
const CommandLimit = 2 * time.Minute

// The placeholders of a signer command, in any of its arguments.
const (
	placeFile   = "{file}"   // a file of what is signed: the module without a signature
	placeDigest = "{digest}" // a file of its hash, raw bytes
	placeHash   = "{hash}"   // the hash's name, sha256
)

// commandSigner has a command sign, which reads what is signed from a file and writes the raw signature to its
// standard output: for RSA that of PKCS#1 v1.5, for ECDSA in DER. It is started without a shell. What it
// writes is verified with the certificate before it is used.
type commandSigner struct{ key Key }

func newCommandSigner(k Key) (Signer, error) {
	if !slices.ContainsFunc(k.Command[1:], func(a string) bool { return strings.Contains(a, placeFile) || strings.Contains(a, placeDigest) }) {
		return nil, fmt.Errorf("the signer command has neither %s nor %s: it would not know what to sign", placeFile, placeDigest)
	}
	return commandSigner{k}, nil
}

func (c commandSigner) Sign(ctx context.Context, image []byte, hash string) ([]byte, error) {
	h, ok := modsig.HashByName(hash)
	if !ok {
		return nil, fmt.Errorf("sign: %w", &HashError{hash})
	}
	image, _, err := modsig.Split(image)
	if err != nil {
		return nil, err
	}
	signed, err := modsig.Sign(image, &commandKey{ctx, c.key, image, hash}, c.key.Cert, h)
	if err != nil {
		return nil, err
	}
	_, sig, err := modsig.Split(signed)
	if err == nil {
		_, err = sig.Verify(image, []*x509.Certificate{c.key.Cert})
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %w", &CommandError{Program: c.key.Command[0], Err: errors.New("what it wrote is no signature of the module by the certificate's key")})
	}
	return signed, nil
}

// CommandError is a signer command that failed.
type CommandError struct {
	Program string
	Says    string // the end of what it wrote to standard error
	Err     error
}

func (e *CommandError) Error() string {
	text := fmt.Sprintf("%s: %v", e.Program, e.Err)
	if e.Says != "" {
		text += ": " + e.Says
	}
	return text
}
func (e *CommandError) Unwrap() error { return e.Err }

// commandKey is the command as the private key for one module.
type commandKey struct {
	ctx   context.Context
	key   Key
	image []byte
	hash  string
}

func (c *commandKey) Public() crypto.PublicKey { return c.key.Cert.PublicKey }

func (c *commandKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	dir, err := os.MkdirTemp("", "kmodctl-sign-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file, digestFile := filepath.Join(dir, "module"), filepath.Join(dir, "digest")
	if err := cmp.Or(os.WriteFile(file, c.image, 0o600), os.WriteFile(digestFile, digest, 0o600)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(c.ctx, CommandLimit, fmt.Errorf("it took longer than %v", CommandLimit))
	defer cancel()
	places := strings.NewReplacer(placeFile, file, placeDigest, digestFile, placeHash, c.hash)
	argv := make([]string, len(c.key.Command))
	for i, a := range c.key.Command {
		argv[i] = places.Replace(a)
	}
	var out, says bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &says
	cmd.WaitDelay = time.Second // for what it left behind with our pipes
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &CommandError{argv[0], lastLine(says.String()), err}
	}
	return out.Bytes(), nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
