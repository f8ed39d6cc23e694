package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"kmodctl/internal/keys"
)

// mokLinks are the files of DKMS's signing key, and where they lead once the key is ours.
var mokLinks = []struct{ name, to string }{
	{"mok.key", keys.Folder + "/active/key.pem"},
	{"mok.pub", keys.Folder + "/active/cert.der"},
}

// generateMOK makes sure that there is a key that signs modules, and shows it where DKMS has its own. A pair of DKMS's stays where it is, and
// becomes that key where there is none; one file of it alone is never overwritten.
func (e *env) generateMOK(ctx context.Context) error {
	conf, err := e.signConfig(ctx)
	if err != nil {
		return err
	}
	tree, err := e.inside(dkmsTreePath)
	if err != nil {
		return err
	}
	var theirs []string
	for _, l := range mokLinks {
		file := filepath.Join(tree, l.name)
		target, err := os.Readlink(file)
		if _, statErr := os.Lstat(file); statErr == nil && (err != nil || target != l.to) {
			theirs = append(theirs, file)
		} else if statErr != nil && !errors.Is(statErr, fs.ErrNotExist) {
			return statErr
		}
	}
	if len(theirs) == 1 {
		return fmt.Errorf("generate_mok: only %s of the two files of a key is there, and is not overwritten: move it away", theirs[0])
	}
	store := conf.store(e)
	key, err := store.Active()
	made := false
	switch {
	case errors.Is(err, keys.ErrNoKey) && e.dryRun:
		e.would("make a key in %s", keys.Folder)
		return nil
	case errors.Is(err, keys.ErrNoKey):
		if key, made, err = store.Ensure(ctx, keys.New{TakeOver: true}); err != nil {
			return fmt.Errorf("generate_mok: %w", err)
		}
	case err != nil:
		return fmt.Errorf("generate_mok: %w", err)
	}
	switch {
	case made && key.Origin != "":
		e.changed("took over signing key %s from %s", key.Name, key.Origin)
	case made:
		e.changed("made signing key %s; to have this machine trust it: kmodctl key enroll", key.Name)
	default:
		e.say("nothing to do: key %s signs", key.Name)
	}
	if len(theirs) > 0 || key.Name == keys.Configured || e.dryRun {
		return nil
	}
	return linkMOK(tree)
}

// linkMOK shows the key that signs in DKMS's tree: root, who alone may read it, finds it under the names that it has there.
func linkMOK(tree string) error {
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	for _, l := range mokLinks {
		if err := os.Symlink(l.to, filepath.Join(tree, l.name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// frameKey is the pair of files that framework.conf names, as far as it is somebody else's and there: DKMS makes one that is not.
func (e *env) frameKey(frame map[string]string) (key, cert string) {
	key, cert = frame["mok_signing_key"], frame["mok_certificate"]
	file, err := e.root.Path(key)
	if key == "" || cert == "" || isToken(key) || errors.Is(err, fs.ErrNotExist) {
		return "", ""
	}
	if own := keys.Folder + "/"; strings.HasPrefix(e.root.Inside(file), own) || strings.HasPrefix(path.Clean(key), own) {
		return "", ""
	}
	return key, cert
}

// isToken tells the URI of a key in a token (RFC 7512) from a file.
func isToken(key string) bool { return strings.HasPrefix(key, "pkcs11:") }
