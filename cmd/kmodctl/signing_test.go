package main

import (
	"os"
	"path/filepath"
	"testing"

	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
)

// TestSignConfig: what config.toml and DKMS's framework.conf say of signing, and who wins.
func TestSignConfig(t *testing.T) {
	const frame = "mok_signing_key=/etc/pki/my.priv\nmok_certificate=/etc/pki/my.der\ntry_sign_modules=false\n"
	for _, c := range []struct {
		toml, frame string
		want        signConfig
	}{
		{"", "", signConfig{Mode: "auto", Hash: "sha256"}},
		{"", frame, signConfig{Mode: "never", Hash: "sha256", Key: "/etc/pki/my.priv", Cert: "/etc/pki/my.der"}},
		{"[sign]\nmode = \"always\"\nhash = \"sha512\"\nkey = \"/k\"\ncert = \"/c\"\n", frame, signConfig{Mode: "always", Hash: "sha512", Key: "/k", Cert: "/c"}},
	} {
		root := t.TempDir()
		for name, text := range map[string]string{configFile: c.toml, "/etc/dkms/framework.conf": c.frame, "/etc/pki/my.priv": "a key"} {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		e := &env{root: kernel.Root(root)}
		got, err := e.signConfig(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Mode != c.want.Mode || got.Hash != c.want.Hash || got.Key != c.want.Key || got.Cert != c.want.Cert {
			t.Errorf("%q, %q: %+v, want %+v", c.toml, c.frame, got, c.want)
		}
	}
}

// TestSignConfigRefused: values that mean nothing.
func TestSignConfigRefused(t *testing.T) {
	for text, want := range map[string]string{
		"mode = \"sometimes\"": `read /etc/kmodctl/config.toml: sign.mode: "sometimes" is not auto, always or never`,
		"hash = \"crc32\"":     `read /etc/kmodctl/config.toml: sign.hash: the kernel knows no hash "crc32"`,
	} {
		var c config
		if err := c.read(configFile, []byte("[sign]\n"+text+"\n")); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestPromote: the next key waits until the firmware has it, and then signs without being asked for.
func TestPromote(t *testing.T) {
	root := withFirmware(t, secureBootOn)
	km := inRoot(t, root)
	km(0, "key", "new")
	km(0, "key", "rotate")
	next := []byte(km(0, "key", "show", "mok2", "--der").out)
	first := []byte(km(0, "key", "show", "mok1", "--der").out)
	active := func(want string) {
		t.Helper()
		km(0, "resign", "--all")
		says(t, km(0, "key", "show").out, "name:       "+want+"\n")
	}
	setVariables(t, root, certificates("MokListRT", efi.Shim, first))
	active("mok1")
	setVariables(t, root, certificates("MokListRT", efi.Shim, first, next), certificates("MokListXRT", efi.Shim, next))
	active("mok1") // and revoked
	setVariables(t, root, certificates("MokListXRT", efi.Shim))
	active("mok2")
}
