package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/efi"
	"kmodctl/internal/keys"
)

// enrollFlags are those of key enroll.
func enrollFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "password-file", Usage: "enroll: the first line of `FILE` is the password that the blue screen asks for; it may be /dev/fd/N"},
		&cli.StringFlag{Name: "hash-file", Usage: "enroll: `FILE` has the password's hash, as mokutil --generate-hash prints it"},
		&cli.BoolFlag{Name: "generate-password", Usage: "enroll: make a password for this once, and print it"},
	}
}

// enrollDocument is the document of key enroll.
type enrollDocument struct {
	DryRun   bool     `json:"dry_run,omitempty"`
	Name     string   `json:"name,omitempty"` // of the key; "" of a certificate that was named by its file
	Subject  string   `json:"subject"`
	SHA1     string   `json:"sha1"` // as the blue screen shows it
	SHA256   string   `json:"sha256"`
	State    string   `json:"state"` // enrolled, pending
	Asked    bool     `json:"asked,omitempty"`
	Password string   `json:"password,omitempty"` // that was made
	Steps    []string `json:"steps,omitempty"`    // what to do at the next boot
	Notes    []string `json:"notes,omitempty"`
}

// ErrNoUEFI: there is no firmware that a key could be enrolled in.
var errNoUEFI = errors.New("this machine was not booted by UEFI: no firmware asks for keys here")

// enroll has MokManager ask, at the next boot, to trust the certificate of a key.
func (k *keyCommand) enroll() error {
	if err := k.takes(0, 1); err != nil {
		return err
	}
	key, err := k.toEnroll()
	if err != nil {
		return err
	}
	state := efi.ReadState(k.root)
	if !state.UEFI {
		return fmt.Errorf("key enroll: %w", errNoUEFI)
	}
	if state.SecureBoot == efi.Unknown {
		return fmt.Errorf("key enroll: %w", errors.Join(state.Errors...))
	}
	doc := enrollDocument{DryRun: k.dryRun, Name: key.Name, Subject: key.Cert.Subject.String(), SHA1: key.SHA1(), SHA256: key.Fingerprint(), State: "pending", Notes: enrollNotes(state)}
	switch at := state.EnrolmentOf(key.Cert); {
	case len(at.Revoked) > 0:
		return fmt.Errorf("key enroll: %s is revoked by %s", doc.Subject, strings.Join(at.Revoked, " and "))
	case at.Leaving:
		return fmt.Errorf("key enroll: %s: %w", doc.Subject, efi.ErrLeaving)
	case len(at.In) > 0:
		doc.State = "enrolled"
		k.say("nothing to do: %s is in %s", doc.Subject, strings.Join(at.In, " and "))
		return k.enrolled(doc)
	}
	doc.Steps = enrollSteps(key)
	for _, note := range doc.Notes {
		k.say("note: %s", note)
	}
	if state.EnrolmentOf(key.Cert).Pending {
		k.say("nothing to do: it is asked for already, at the next boot:")
		k.tellSteps(doc.Steps)
		return k.enrolled(doc)
	}
	doc.Asked = true
	if k.dryRun {
		k.would("have MokManager ask for %s (SHA1 %s)", doc.Subject, colons(doc.SHA1))
		k.tellSteps(doc.Steps)
		return k.enrolled(doc)
	}
	k.tellSteps(doc.Steps)
	var hash efi.Crypt
	if hash, doc.Password, err = k.enrollPassword(); err != nil {
		return err
	}
	if err := k.request(key, hash); err != nil {
		return fmt.Errorf("key enroll: %w", err)
	}
	k.changed("asked for %s: reboot, at the machine's own screen and keyboard", doc.Subject)
	if doc.Password != "" && !k.json {
		fmt.Fprintln(k.out, "password: "+doc.Password)
	}
	return k.enrolled(doc)
}

// toEnroll is the key that is named, or the file of a certificate; without, the next key if there is one, else the active one.
func (k *keyCommand) toEnroll() (keys.Key, error) {
	if len(k.args) == 1 && strings.Contains(k.args[0], "/") {
		text, err := os.ReadFile(k.args[0])
		if err != nil {
			return keys.Key{}, fmt.Errorf("key enroll: %w", err)
		}
		cert, err := keys.ParseCertificate(text)
		if err != nil {
			return keys.Key{}, fmt.Errorf("key enroll: read certificate %s: %w", k.args[0], err)
		}
		return keys.Key{Cert: cert}, nil
	}
	if len(k.args) == 0 {
		all, err := k.store.List()
		if i := slices.IndexFunc(all, func(key keys.Key) bool { return key.State == keys.StateNext }); err == nil && i >= 0 {
			return all[i], nil
		}
	}
	return k.named()
}

// enrollNotes say what may keep an enrolment from being asked for, or from being of use.
func enrollNotes(s efi.State) (notes []string) {
	if len(s.List("MokListRT").Entries) == 0 {
		notes = append(notes, "shim has left no list of keys at this boot (MokListRT): a machine that boots without shim asks nothing; its firmware's set-up enrols certificates (db)")
	}
	if s.Enforced() == efi.Off {
		notes = append(notes, "Secure Boot is off: the kernel trusts enrolled keys once it is on")
	}
	return notes
}

// enrollSteps are what MokManager, shim's blue screen, shows and asks.
func enrollSteps(key keys.Key) []string {
	return []string{
		`Reboot. A blue screen says "Shim UEFI key management: Press any key to perform MOK management". Press a key within 10 seconds, else the machine boots on and has forgotten the request: then ask again.`,
		`Choose "Enroll MOK".`,
		`"View key 0" shows the certificate: its subject is ` + key.Cert.Subject.String() + `, its fingerprint ` + colons(key.SHA1()) + `. Go back, and choose "Continue".`,
		`"Enroll the key(s)?": choose "Yes".`,
		`"Password:": type the password of this request. Nothing is shown, and the keyboard is an American one.`,
		`Choose "Reboot". Then kmodctl secureboot says whether the key is enrolled.`,
	}
}

func (k *keyCommand) tellSteps(steps []string) {
	for i, step := range steps {
		k.say("  %d. %s", i+1, step)
	}
}

func (k *keyCommand) enrolled(doc enrollDocument) error {
	if !k.json {
		return nil
	}
	return k.document("key-enroll", doc)
}

// enrollPassword is the password of the request; made is what was made for it, "" when somebody gave one.
func (k *keyCommand) enrollPassword() (hash efi.Crypt, made string, err error) {
	var word []byte
	switch file, hashed := k.c.String("password-file"), k.c.String("hash-file"); {
	case hashed != "":
		text, err := os.ReadFile(hashed)
		if err != nil {
			return hash, "", fmt.Errorf("key enroll: %w", err)
		}
		hash, err = efi.ParseCrypt(strings.Trim(string(text), "\x00\r\n"))
		return hash, "", err
	case file != "":
		word, err = keys.ReadPassphrase(file)
	case k.c.Bool("generate-password"):
		made = generatePassword()
		word = []byte(made)
	default:
		word, err = askTwice("password for the blue screen")
		if errors.Is(err, keys.ErrEncrypted) {
			return hash, "", usagef("key enroll: nobody is here to be asked for a password: --password-file, --hash-file or --generate-password give one")
		}
	}
	if err == nil {
		hash, err = efi.HashPassword(string(word))
	}
	return hash, made, err
}

// generatePassword makes ten letters, 43 bits, that are at the same place on American, British, German and French keyboards.
func generatePassword() string {
	const letters = "bcdefghijklnoprstuvx"
	word := make([]byte, 10)
	for i := range word {
		for word[i] == 0 {
			b := []byte{0}
			rand.Read(b)
			if n := int(b[0]); n < 256/len(letters)*len(letters) { // each as likely as any other
				word[i] = letters[n%len(letters)]
			}
		}
	}
	return string(word)
}

// request leaves the request in the firmware: by mokutil, which knows the quirks of machines, where it is there and the machine is
// this one; else by ourselves, which leaves the same bytes.
func (k *keyCommand) request(key keys.Key, hash efi.Crypt) error {
	if mokutil, err := exec.LookPath("mokutil"); err == nil && k.root.IsHost() {
		return k.requestBy(mokutil, key, hash)
	}
	request, err := efi.NewRequest(k.root, key.Cert, hash)
	if err != nil {
		return err
	}
	return request.Write(k.root)
}

func (k *keyCommand) requestBy(mokutil string, key keys.Key, hash efi.Crypt) error {
	dir, err := os.MkdirTemp("", "kmodctl-enroll-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cert, hashFile := filepath.Join(dir, "cert.der"), filepath.Join(dir, "hash")
	if err := errors.Join(os.WriteFile(cert, key.Cert.Raw, 0o600), os.WriteFile(hashFile, []byte(hash.String()), 0o600)); err != nil {
		return err
	}
	out, err := exec.CommandContext(k.ctx, mokutil, "--import", cert, "--hash-file", hashFile).CombinedOutput()
	said := strings.TrimSpace(strings.ReplaceAll(string(out), cert, key.Cert.Subject.String()))
	if err != nil {
		return fmt.Errorf("mokutil: %w: %s", err, said)
	}
	if !efi.ReadState(k.root).EnrolmentOf(key.Cert).Pending {
		return fmt.Errorf("mokutil has asked for nothing: %s", said)
	}
	return nil
}

// colons is a fingerprint as shim shows it.
func colons(hex string) string {
	var pairs []string
	for pair := range slices.Chunk([]byte(hex), 2) {
		pairs = append(pairs, string(pair))
	}
	return strings.Join(pairs, ":")
}
