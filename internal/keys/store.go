package keys

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kmodctl/internal/kernel"
)

// Store are the keys of a machine.
type Store struct {
	root kernel.Root
	conf Config
}

// Config is what the administrator says of keys: the pair of files that signs instead of the store's
// own, or a certificate and the command that signs for it.
type Config struct {
	Key, Cert string   // files inside the root, PEM or DER
	Command   []string // argv; see commandSigner
	Lax       bool     // who may read Key is not looked at: a caller named it
}

// Open is the store of the machine below root. Nothing is read yet.
func Open(root kernel.Root) Store { return Store{root: root} }

// With is the store with what the administrator says.
func (s Store) With(c Config) Store {
	s.conf = c
	return s
}

// The files of a key, and the links that say which signs.
const (
	keyFile    = "key.pem"
	certFile   = "cert.der"
	factsFile  = "key.json"
	activeLink = "active"
	nextLink   = "next"
)

// facts is the content of factsFile.
type facts struct {
	Created time.Time `json:"created"`
	Origin  string    `json:"origin,omitempty"`
}

// List returns all keys: that of the configuration, then the store's, the newest last. With an error
// come those that can be read.
func (s Store) List() ([]Key, error) {
	var all []Key
	configured, err := s.configured()
	switch {
	case err == nil:
		all = append(all, configured)
	case errors.Is(err, ErrNoKey):
		err = nil
	}
	own, ownErr := s.own()
	if s.conf.names() {
		for i := range own {
			own[i].State = StateOld
		}
	}
	return append(all, own...), errors.Join(err, ownErr)
}

// Active is the key that signs today, ErrNoKey if there is none.
func (s Store) Active() (Key, error) {
	if s.conf.names() {
		return s.configured()
	}
	own, err := s.own()
	if i := slices.IndexFunc(own, func(k Key) bool { return k.State == StateActive }); i >= 0 {
		return own[i], nil
	}
	return Key{}, cmp.Or(err, ErrNoKey)
}

// names reports whether the configuration names a key.
func (c Config) names() bool { return c.Key != "" || c.Cert != "" || len(c.Command) > 0 }

// configured is the key that the configuration names, ErrNoKey if it names none.
func (s Store) configured() (Key, error) {
	c := s.conf
	switch {
	case !c.names():
		return Key{}, ErrNoKey
	case c.Cert == "":
		return Key{}, fmt.Errorf("a signing key is configured, and no certificate of it")
	case c.Key == "" && len(c.Command) == 0:
		return Key{}, fmt.Errorf("the certificate %s is configured, and neither its key nor a command that signs", c.Cert)
	case c.Key != "" && len(c.Command) > 0:
		return Key{}, fmt.Errorf("both the key %s and a command that signs are configured", c.Key)
	}
	k := Key{Name: Configured, State: StateActive, Command: c.Command, lax: c.Lax}
	text, err := s.root.ReadFile(c.Cert)
	if err == nil {
		k.Cert, err = ParseCertificate(text)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read certificate %s: %w", c.Cert, err)
	}
	if c.Key != "" {
		if k.File, err = s.root.Path(c.Key); err != nil {
			return Key{}, fmt.Errorf("find key: %w", err)
		}
	}
	return k, nil
}

// own are the keys of the store, the oldest first.
func (s Store) own() ([]Key, error) {
	dir, err := s.root.Folder(Folder, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return s.read(dir)
}

func (s Store) read(dir *os.Root) ([]Key, error) {
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", Folder, err)
	}
	place, err := s.root.Path(Folder)
	if err != nil {
		return nil, err
	}
	var all []Key
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		k, err := readKey(dir, place, e.Name())
		if err != nil {
			errs = append(errs, fmt.Errorf("read key %s: %w", e.Name(), err))
			continue
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b Key) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name)) // mok2 before mok10
	})
	for link, state := range map[string]string{activeLink: StateActive, nextLink: StateNext} {
		target, _ := dir.Readlink(link) // one that leads nowhere was never completed, and says nothing
		if i := slices.IndexFunc(all, func(k Key) bool { return k.Name == target }); i >= 0 {
			all[i].State = state
		}
	}
	return all, errors.Join(errs...)
}

// readKey reads a key's folder; place is the store's, as this process opens it.
func readKey(dir *os.Root, place, name string) (Key, error) {
	k := Key{Name: name, State: StateOld, File: filepath.Join(place, name, keyFile)}
	der, err := dir.ReadFile(path.Join(name, certFile))
	if err != nil {
		return k, err
	}
	if k.Cert, err = ParseCertificate(der); err != nil {
		return k, err
	}
	if _, err := dir.Stat(path.Join(name, keyFile)); err != nil {
		return k, err
	}
	text, err := dir.ReadFile(path.Join(name, factsFile))
	if err != nil {
		return k, err
	}
	var f facts
	err = json.Unmarshal(text, &f)
	k.Created, k.Origin = f.Created, f.Origin
	return k, err
}

// ParseCertificate reads a certificate in DER or PEM.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return x509.ParseCertificate(text)
}
