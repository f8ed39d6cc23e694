package main

import (
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
)

// keyDocument is the document of key.
type keyDocument struct {
	DryRun bool        `json:"dry_run,omitempty"`
	Made   bool        `json:"made,omitempty"`
	Keys   []keyFacts  `json:"keys"`
	Pairs  []keys.Pair `json:"pairs,omitempty"`
}

// keyFacts is what is told of a key.
type keyFacts struct {
	Name       string            `json:"name"`
	State      string            `json:"state"`
	Algorithm  string            `json:"algorithm"`
	Subject    string            `json:"subject"`
	Serial     string            `json:"serial"`
	SHA256     string            `json:"sha256"`
	SHA1       string            `json:"sha1"`
	KeyID      string            `json:"key_id,omitempty"`
	From       time.Time         `json:"valid_from"`
	Until      time.Time         `json:"valid_until"`
	Created    time.Time         `json:"created,omitzero"`
	Origin     string            `json:"origin,omitempty"`
	File       string            `json:"file,omitempty"`
	Passphrase bool              `json:"passphrase,omitempty"`
	Command    []string          `json:"command,omitempty"`
	Refused    map[string]string `json:"refused,omitempty"`
}

func (k *keyCommand) facts(key keys.Key) keyFacts {
	f := keyFacts{
		Name: key.Name, State: key.State, Algorithm: key.Algorithm(), Subject: key.Cert.Subject.String(),
		Serial: fmt.Sprintf("%x", key.Cert.SerialNumber), SHA256: key.Fingerprint(), SHA1: key.SHA1(), KeyID: fmt.Sprintf("%x", key.Cert.SubjectKeyId),
		From: key.Cert.NotBefore.UTC(), Until: key.Cert.NotAfter.UTC(), Created: key.Created, Origin: key.Origin, Command: key.Command,
	}
	if key.File != "" {
		f.File = k.root.Inside(key.File)
	}
	return f
}

// answer tells of the keys that a command is about.
func (k *keyCommand) answer(made bool, all ...keys.Key) error {
	if !k.json {
		return nil
	}
	doc := keyDocument{DryRun: k.dryRun, Made: made, Keys: []keyFacts{}}
	for _, key := range all {
		doc.Keys = append(doc.Keys, k.facts(key))
	}
	return k.document("key", doc)
}

// named is the key that the argument names, the active one without.
func (k *keyCommand) named() (keys.Key, error) {
	if len(k.args) == 0 {
		return k.store.Active()
	}
	all, err := k.store.List()
	i := slices.IndexFunc(all, func(key keys.Key) bool { return key.Name == k.args[0] })
	switch {
	case i >= 0:
		return all[i], nil
	case err != nil:
		return keys.Key{}, err
	}
	return keys.Key{}, noKeyError{k.args[0]}
}

// noKeyError is a name that no key has.
type noKeyError struct{ name string }

func (e noKeyError) Error() string { return "key " + e.name + ": there is none of this name" }

func (k *keyCommand) show() error {
	if err := k.takes(0, 1); err != nil {
		return err
	}
	key, err := k.named()
	if err != nil {
		return err
	}
	switch {
	case k.c.Bool("pem"):
		return pem.Encode(k.out, &pem.Block{Type: "CERTIFICATE", Bytes: key.Cert.Raw})
	case k.c.Bool("der"):
		_, err := k.out.Write(key.Cert.Raw)
		return err
	}
	f := k.facts(key)
	if f.Passphrase, err = k.store.Encrypted(key); err != nil {
		return err
	}
	kernels, err := kernel.Find(k.root)
	if err != nil {
		return err
	}
	f.Refused = map[string]string{}
	for _, r := range kernels {
		why, err := key.Refusal(r, k.conf.Hash)
		if err != nil {
			return err
		}
		if why != "" {
			f.Refused[r.Name] = why
		}
	}
	if k.json {
		return k.document("key", keyDocument{Keys: []keyFacts{f}})
	}
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(k.out, "%-12s%s\n", name+":", value)
		}
	}
	line("name", f.Name)
	line("state", f.State)
	line("algorithm", f.Algorithm)
	line("subject", f.Subject)
	line("serial", f.Serial)
	line("key id", f.KeyID)
	line("sha256", f.SHA256)
	line("sha1", f.SHA1)
	line("valid", f.From.Format(time.DateOnly)+" to "+f.Until.Format(time.DateOnly))
	if !f.Created.IsZero() {
		line("created", f.Created.Format(time.RFC3339))
	}
	line("origin", f.Origin)
	if f.Passphrase {
		f.File += " (with a passphrase)"
	}
	line("file", f.File)
	line("command", strings.Join(f.Command, " "))
	for _, r := range kernels {
		line("kernel", r.Name+": "+k.taken(r, f.Refused[r.Name]))
	}
	return nil
}

// taken says whether a kernel verifies what the key signs.
func (k *keyCommand) taken(r kernel.Release, why string) string {
	switch {
	case why != "":
		return why
	case r.Tree == nil:
		return "not known, it has no headers here"
	}
	return "takes its signatures over " + k.conf.Hash + ", once it is trusted"
}
