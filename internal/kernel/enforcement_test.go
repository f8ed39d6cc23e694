package kernel

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEnforcement(t *testing.T) {
	for _, c := range []struct {
		enforce, lockdown string // what the files say; "" where there is none
		want              Enforcement
		signedOnly        bool
	}{
		{"", "", Enforcement{}, false},
		{"N\n", "[none] integrity confidentiality\n", Enforcement{"N", "none"}, false},
		{"Y\n", "[none] integrity confidentiality\n", Enforcement{"Y", "none"}, true},
		{"N\n", "none [integrity] confidentiality\n", Enforcement{"N", "integrity"}, true},
		{"N\n", "none integrity [confidentiality]\n", Enforcement{"N", "confidentiality"}, true},
	} {
		root := t.TempDir()
		for name, text := range map[string]string{"sys/module/module/parameters/sig_enforce": c.enforce, "sys/kernel/security/lockdown": c.lockdown} {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if text == "" {
				continue
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := Root(root).Enforcement(); got != c.want || got.SignedOnly() != c.signedOnly {
			t.Errorf("%q, %q: %+v, signed only %v", c.enforce, c.lockdown, got, got.SignedOnly())
		}
	}
}
