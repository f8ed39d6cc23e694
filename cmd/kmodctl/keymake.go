package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"kmodctl/internal/keys"
)

// bits is --bits.
func (k *keyCommand) bits() (int, error) {
	if n := k.c.Int("bits"); n == 2048 || n == 4096 {
		return n, nil
	}
	return 0, usagef("--bits %d is neither 2048 nor 4096", k.c.Int("bits"))
}

// newKey is what new and rotate make.
func (k *keyCommand) newKey() (keys.New, error) {
	bits, err := k.bits()
	if err != nil || !k.c.Bool("passphrase") {
		return keys.New{Bits: bits}, err
	}
	word, err := newPassphrase()
	if err == nil && len(word) == 0 {
		err = errors.New("key: the passphrase is empty")
	}
	return keys.New{Bits: bits, Passphrase: word}, err
}

func (k *keyCommand) create() error {
	if err := k.takes(0); err != nil {
		return err
	}
	bits, err := k.bits()
	if err != nil {
		return err
	}
	active, err := k.store.Active()
	switch {
	case err == nil:
		k.say("nothing to do: key %s signs: kmodctl key rotate makes the next one", active.Name)
		return k.answer(false, active)
	case !errors.Is(err, keys.ErrNoKey):
		return err
	case k.dryRun:
		k.would("make a key of RSA %d in %s", bits, keys.Folder)
		return k.answer(true)
	}
	n, err := k.newKey()
	if err != nil {
		return err
	}
	key, made, err := k.store.Ensure(k.ctx, n)
	if err != nil {
		return fmt.Errorf("key new: %w", err)
	}
	k.told(key, made)
	for _, p := range k.store.Find() {
		k.say("note: %s has a key too: kmodctl key import %s %s --now makes it the one that signs", p.Owner, p.Key, p.Cert)
	}
	return k.answer(made, key)
}

// told tells of a key that was made, or not.
func (k *keyCommand) told(key keys.Key, made bool) {
	does := map[string]string{keys.StateActive: "it signs", keys.StateNext: "it will sign once it is trusted, or after kmodctl key rotate --now"}[key.State]
	if !made {
		k.say("nothing to do: key %s is there: %s", key.Name, does)
		return
	}
	k.changed("made key %s (%s) in %s: %s", key.Name, key.Algorithm(), keys.Folder, does)
}

func (k *keyCommand) rotate() error {
	if err := k.takes(0); err != nil {
		return err
	}
	bits, err := k.bits()
	if err != nil {
		return err
	}
	all, err := k.store.List()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(key keys.Key) bool { return key.Name == keys.Configured }) {
		return usagef("key rotate: the configuration names the key that signs: change it there")
	}
	now := k.c.Bool("now")
	waits := slices.IndexFunc(all, func(key keys.Key) bool { return key.State == keys.StateNext })
	if k.dryRun {
		if waits < 0 {
			k.would("make a key of RSA %d in %s", bits, keys.Folder)
		}
		if now {
			k.would("sign with it from now on")
		}
		return k.answer(waits < 0)
	}
	made := false
	var key keys.Key
	if waits >= 0 {
		key = all[waits]
	} else {
		n, err := k.newKey()
		if err != nil {
			return err
		}
		if key, made, err = k.store.Rotate(k.ctx, n); err != nil {
			return fmt.Errorf("key rotate: %w", err)
		}
	}
	if !now || made {
		k.told(key, made)
	}
	if now {
		if key, err = k.activate(key); err != nil {
			return err
		}
	}
	return k.answer(made, key)
}

// activate makes a key that waits the one that signs.
func (k *keyCommand) activate(key keys.Key) (keys.Key, error) {
	if key.State != keys.StateNext {
		return key, nil
	}
	key, err := k.store.Activate(k.ctx)
	if err == nil {
		k.changed("key %s signs from now on: kmodctl resign --all signs with it what is installed", key.Name)
	}
	return key, err
}

func (k *keyCommand) importPair() error {
	if err := k.takes(0, 2); err != nil {
		return err
	}
	if len(k.args) == 0 {
		return k.offer()
	}
	files := slices.Clone(k.args)
	for i, name := range files {
		var err error
		if files[i], err = k.given(name); err != nil {
			return err
		}
	}
	if k.dryRun {
		k.would("import %s and %s into %s", files[0], files[1], keys.Folder)
		return k.answer(true)
	}
	key, made, err := k.store.Import(k.ctx, files[0], files[1], k.passphrase(k.args[0]))
	if err != nil {
		return fmt.Errorf("key %w", err)
	}
	if made {
		k.changed("imported %s as key %s (%s)", k.args[0], key.Name, key.Algorithm())
	} else {
		k.say("nothing to do: it is key %s already", key.Name)
	}
	if k.c.Bool("now") {
		if key, err = k.activate(key); err != nil {
			return err
		}
	}
	return k.answer(made, key)
}

// given is the host path of a file that was named: inside the root if it is there, as what import lists is.
func (k *keyCommand) given(name string) (string, error) {
	if !k.root.IsHost() && filepath.IsAbs(name) {
		if file, err := k.root.Path(name); err == nil {
			return file, nil
		}
	}
	if _, err := os.Stat(name); err != nil {
		return "", fmt.Errorf("key import: %w", err)
	}
	return filepath.Abs(name)
}

// offer lists the pairs that could be imported.
func (k *keyCommand) offer() error {
	pairs := k.store.Find()
	if k.json {
		return k.document("key", keyDocument{Keys: []keyFacts{}, Pairs: pairs})
	}
	if len(pairs) == 0 {
		k.say("no other keys were found on this machine")
		return nil
	}
	t := k.table("OWNER", "SUBJECT", "IMPORT IT")
	for _, p := range pairs {
		how := k.command("key import " + p.Key + " " + p.Cert)
		if p.Err != nil {
			how = "no: " + p.Why
		}
		t.row(p.Owner, p.Subject, how)
	}
	return t.flush()
}
