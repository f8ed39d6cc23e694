package keys

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/youmark/pkcs8"

	"kmodctl/internal/kernel"
)

// newPrefix begins the name of a folder that is not a key yet; "active" and "next" are made under it too.
const newPrefix = ".new-"

// New says what kind of key is made, of RSA.
type New struct {
	Bits       int    // 0 is 2048, which all firmware takes
	Passphrase []byte // nil is none
	TakeOver   bool   // Ensure imports a pair that something else has here, where there is one without a passphrase, and makes none then
}

// Ensure returns the key that signs, and makes one if there is none. made reports which it was.
// Callers at the same time get the same key.
func (s Store) Ensure(ctx context.Context, n New) (k Key, made bool, err error) {
	k, err = s.Active()
	if !errors.Is(err, ErrNoKey) {
		return k, false, err
	}
	if n.TakeOver {
		for _, p := range s.Find() {
			key, keyErr := s.root.Path(p.Key)
			cert, certErr := s.root.Path(p.Cert)
			if p.Err != nil || keyErr != nil || certErr != nil {
				continue
			}
			if k, made, err := s.Import(ctx, key, cert, nil); err == nil { // it may have gone meanwhile
				return k, made, nil
			}
		}
	}
	return s.add(ctx, StateActive, func(name string) (pair, error) { return s.newPair(name, n) })
}

// Rotate returns the key that will sign next, and makes one if there is none. Where no key signs yet, it is
// the one that does.
func (s Store) Rotate(ctx context.Context, n New) (k Key, made bool, err error) {
	return s.add(ctx, StateNext, func(name string) (pair, error) { return s.newPair(name, n) })
}

// Activate makes the next key the one that signs, in one step. ErrNoKey if there is none.
func (s Store) Activate(ctx context.Context) (Key, error) {
	dir, err := s.lock(ctx)
	if err != nil {
		return Key{}, err
	}
	defer dir.Close()
	all, err := s.read(dir.Root)
	i := slices.IndexFunc(all, func(k Key) bool { return k.State == StateNext })
	if i < 0 {
		return Key{}, cmp.Or(err, ErrNoKey)
	}
	if err := errors.Join(dir.Rename(nextLink, activeLink), dir.sync()); err != nil {
		return Key{}, fmt.Errorf("make key %s the active one: %w", all[i].Name, err)
	}
	all[i].State = StateActive
	return all[i], nil
}

// pair is a key before it is one of the store.
type pair struct {
	key    []byte // PEM
	cert   *x509.Certificate
	origin string
}

// add puts a pair into the store, in a state, unless a key of that state or that very certificate is there.
// make is given the name that the key will have.
func (s Store) add(ctx context.Context, state string, make func(name string) (pair, error)) (Key, bool, error) {
	dir, err := s.lock(ctx)
	if err != nil {
		return Key{}, false, err
	}
	defer dir.Close()
	all, err := s.read(dir.Root)
	if err != nil {
		return Key{}, false, err
	}
	if !slices.ContainsFunc(all, func(k Key) bool { return k.State == StateActive }) {
		state = StateActive
	}
	if i := slices.IndexFunc(all, func(k Key) bool { return k.State == state }); i >= 0 {
		return all[i], false, nil
	}
	name := freeName(all)
	p, err := make(name)
	if err != nil {
		return Key{}, false, err
	}
	defer clear(p.key)
	if i := slices.IndexFunc(all, func(k Key) bool { return k.Cert.Equal(p.cert) }); i >= 0 {
		return all[i], false, nil
	}
	if err := dir.put(name, state, p); err != nil {
		return Key{}, false, fmt.Errorf("write key %s: %w", name, errors.Join(err, dir.sweep())) // no part of a private key stays
	}
	all, err = s.read(dir.Root)
	i := slices.IndexFunc(all, func(k Key) bool { return k.Name == name })
	if i < 0 {
		return Key{}, false, cmp.Or(err, fmt.Errorf("write key %s: it is gone", name))
	}
	return all[i], true, nil
}

// freeName is the first of mok1, mok2, ... that no key has.
func freeName(all []Key) string {
	for n := 1; ; n++ {
		name := fmt.Sprintf("mok%d", n)
		if !slices.ContainsFunc(all, func(k Key) bool { return k.Name == name }) {
			return name
		}
	}
}

// locked is the folder of the store, while this process alone writes to it.
type locked struct {
	*os.Root
	file *os.File
}

// lock makes the folder if need be, waits until nobody else writes to it, and takes away what a killed one left.
func (s Store) lock(ctx context.Context) (*locked, error) {
	dir, err := s.root.Folder(Folder, 0o700)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", Folder, err)
	}
	f, err := dir.Open(".")
	if err != nil {
		dir.Close()
		return nil, err
	}
	l := &locked{dir, f}
	if err := kernel.Lock(ctx, f); err != nil {
		dir.Close()
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("lock %s: %w", Folder, err)
	}
	if err := l.sweep(); err != nil {
		l.Close()
		return nil, fmt.Errorf("lock %s: %w", Folder, err)
	}
	return l, nil
}

func (l *locked) Close() error { return errors.Join(l.file.Close(), l.Root.Close()) }
func (l *locked) sync() error  { return l.file.Sync() }

// sweep removes what was begun and never became a key.
func (l *locked) sweep() error {
	entries, err := fs.ReadDir(l.FS(), ".")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) {
			err = errors.Join(err, l.RemoveAll(e.Name()))
		}
	}
	return err
}

// put writes a pair and its state. What counts is the rename of the folder: a link that was made before it leads
// nowhere, and then it leads to a whole key.
func (l *locked) put(name, state string, p pair) error {
	temp := newPrefix + name
	if err := l.Mkdir(temp, 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(facts{Created: time.Now().UTC().Truncate(time.Second), Origin: p.origin})
	if err != nil {
		return err
	}
	for file, content := range map[string][]byte{keyFile: p.key, certFile: p.cert.Raw, factsFile: append(text, '\n')} {
		mode := fs.FileMode(0o644)
		if file == keyFile {
			mode = 0o600
		}
		if err := l.write(path.Join(temp, file), mode, content); err != nil {
			return err
		}
	}
	link := map[string]string{StateActive: activeLink, StateNext: nextLink}[state]
	err = errors.Join(l.syncFolder(temp), l.Symlink(name, newPrefix+link))
	if err == nil {
		err = l.Rename(newPrefix+link, link)
	}
	if err == nil {
		err = l.Rename(temp, name)
	}
	return errors.Join(err, l.sync())
}

func (l *locked) write(name string, mode fs.FileMode, content []byte) error {
	f, err := l.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()) // whatever the umask
}

func (l *locked) syncFolder(name string) error {
	f, err := l.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// encode is a private key as it is kept.
func encode(private crypto.Signer, passphrase []byte) ([]byte, error) {
	var der []byte
	var err error
	kind := "PRIVATE KEY"
	if passphrase == nil {
		der, err = x509.MarshalPKCS8PrivateKey(private)
	} else {
		kind = "ENCRYPTED PRIVATE KEY"
		der, err = pkcs8.MarshalPrivateKey(private, passphrase, cipher)
	}
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), nil
}

// cipher of a key with a passphrase: what openssl 3 reads too. The iterations are OWASP's figure of 2023 for PBKDF2 with
// SHA-256, some 0.2 s for each guess.
var cipher = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256},
}

// Import puts a pair that exists into the store: the one that signs if there is none, else the next one. The
// passphrase of a key stays its own: it is asked for only to see that the certificate fits. Errors: *UnsafeError,
// *MismatchError, *WaitingError, ErrPassphrase, ErrEncrypted.
func (s Store) Import(ctx context.Context, key, cert string, passphrase func() ([]byte, error)) (Key, bool, error) {
	text, err := readPrivate(key, false)
	if err != nil {
		return Key{}, false, fmt.Errorf("import %s: %w", key, err)
	}
	defer clear(text)
	certText, err := os.ReadFile(cert)
	if err != nil {
		return Key{}, false, fmt.Errorf("import certificate: %w", err)
	}
	parsed, err := ParseCertificate(certText)
	if err != nil {
		return Key{}, false, fmt.Errorf("import %s: %w", cert, err)
	}
	private, err := parsePrivate(text, passphrase)
	if err != nil {
		return Key{}, false, fmt.Errorf("import %s: %w", key, err)
	}
	if !fits(private, Key{Cert: parsed}) {
		return Key{}, false, fmt.Errorf("import: %w", &MismatchError{key, cert})
	}
	kept, err := keep(text, private)
	if err != nil {
		return Key{}, false, fmt.Errorf("import %s: %w", key, err)
	}
	defer clear(kept)
	k, made, err := s.add(ctx, StateNext, func(string) (pair, error) {
		return pair{bytes.Clone(kept), parsed, s.root.Inside(key)}, nil
	})
	if err == nil && !k.Cert.Equal(parsed) {
		err = fmt.Errorf("import %s: %w", key, &WaitingError{k.Name})
	}
	return k, made, err
}

// keep is a private key as the store keeps it: with its passphrase if it has one, and nothing else that was in the file.
func keep(text []byte, private crypto.Signer) ([]byte, error) {
	if der := encryptedPart(text); der != nil {
		return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}), nil
	}
	return encode(private, nil)
}
