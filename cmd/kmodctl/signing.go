package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"

	"kmodctl/internal/dkms"
	"kmodctl/internal/efi"
	"kmodctl/internal/keys"
	"kmodctl/internal/modsig"
)

// signConfig is what the administrator says of signing.
type signConfig struct {
	Mode     string   `toml:"mode"`     // one of those below, "" where nothing is said
	Packages []string `toml:"packages"` // those that are signed; none is all
	Hash     string   `toml:"hash"`     // as modsig.HashByName knows it
	Key      string   `toml:"key"`      // files inside the root, in place of the machine's own key
	Cert     string   `toml:"cert"`
	Command  []string `toml:"command"` // argv of what signs in place of Key
}

// Whether modules are signed.
const (
	signAuto   = "auto" // where only signed ones are taken, or there is a key
	signAlways = "always"
	signNever  = "never"
)

// signHash is signed where nobody says otherwise: every kernel takes it.
const signHash = "sha256"

// fault says which value means nothing, "" if all do.
func (c signConfig) fault() string {
	if !slices.Contains([]string{"", signAuto, signAlways, signNever}, c.Mode) {
		return fmt.Sprintf("sign.mode: %q is not auto, always or never", c.Mode)
	}
	if _, ok := modsig.HashByName(cmp.Or(c.Hash, signHash)); !ok {
		return fmt.Sprintf("sign.hash: %v", &keys.HashError{Name: c.Hash})
	}
	return ""
}

// signConfig is what the administrator says of signing: in config.toml, else in DKMS's framework.conf.
func (e *env) signConfig(ctx context.Context) (signConfig, error) {
	conf, err := e.readConfig()
	if err != nil {
		return conf.Sign, err
	}
	return e.framed(ctx, conf.Sign)
}

// framed completes what config.toml says by what framework.conf does, and by the defaults.
func (e *env) framed(ctx context.Context, c signConfig) (signConfig, error) {
	frame, err := dkms.ReadFramework(ctx, e.root, "")
	if err != nil {
		return c, err
	}
	if frame["try_sign_modules"] == "false" {
		c.Mode = cmp.Or(c.Mode, signNever)
	}
	if c.Key == "" && c.Cert == "" && len(c.Command) == 0 {
		c.Key, c.Cert = e.frameKey(frame)
	}
	c.Mode, c.Hash = cmp.Or(c.Mode, signAuto), cmp.Or(c.Hash, signHash)
	return c, nil
}

// store are the machine's signing keys, with the one that the administrator names.
func (c signConfig) store(e *env) keys.Store {
	return keys.Open(e.root).With(keys.Config{Key: c.Key, Cert: c.Cert, Command: c.Command})
}

// promote makes the next key the one that signs, once the firmware trusts it: what the one before has signed is trusted as well.
func (e *env) promote(ctx context.Context, store keys.Store) error {
	all, _ := store.List() // what cannot be read, the search for the active key tells
	i := slices.IndexFunc(all, func(k keys.Key) bool { return k.State == keys.StateNext })
	if i < 0 || e.dryRun {
		return nil
	}
	at := efi.ReadState(e.root).EnrolmentOf(all[i].Cert)
	if len(at.In) == 0 || len(at.Revoked) > 0 || at.Leaving {
		return nil
	}
	_, err := store.Activate(ctx)
	if err == nil {
		e.changed("key %s is trusted by now (%s), and signs from now on", all[i].Name, strings.Join(at.In, ", "))
	}
	return err
}

// passphraseVariable names a file whose first line is the passphrase of the signing key; /dev/fd/N is one too.
const passphraseVariable = "KMODCTL_SIGN_PASSPHRASE_FILE"

// passphrase gets the passphrase of a key from the file that the environment names, else from the terminal.
func (e *env) passphrase(of string) func() ([]byte, error) {
	return func() ([]byte, error) {
		if os.Getenv(passphraseVariable) != "" {
			return passphraseFile()
		}
		return askPassphrase("passphrase of " + of)
	}
}

// newPassphrase is a passphrase for a key that is made; a person types it twice.
func newPassphrase() ([]byte, error) {
	if os.Getenv(passphraseVariable) != "" {
		return passphraseFile()
	}
	return askTwice("passphrase of the new key")
}

// askTwice asks for a word that is to be remembered.
func askTwice(question string) ([]byte, error) {
	word, err := askPassphrase(question)
	if err != nil {
		return nil, err
	}
	again, err := askPassphrase("once more")
	if err == nil && !bytes.Equal(word, again) {
		err = errors.New("what was typed first and then differs")
	}
	return word, err
}

func passphraseFile() ([]byte, error) {
	word, err := keys.ReadPassphrase(os.Getenv(passphraseVariable))
	if err != nil {
		err = fmt.Errorf("%s: %w", passphraseVariable, err)
	}
	return word, err
}

// askPassphrase asks on the terminal, which does not show what is typed.
func askPassphrase(question string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil { // nobody is there to be asked
		return nil, keys.ErrEncrypted
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s: ", question)
	word, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	return word, nil
}
