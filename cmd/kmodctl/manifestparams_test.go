package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestParamsOfManifest: what kmod.toml says of parameters is a file of modprobe.d, which loads follow, behind which the
// administrator's lines and the user's words come, and goes away with the modules.
func TestParamsOfManifest(t *testing.T) {
	release := releases(t)[0]
	root := newRoot(t, release)
	dir, _ := examplePaths(t)
	source := filepath.Join(dir, "params")
	km := func(args ...string) result { t.Helper(); return must(t, append([]string{"--root", root}, args...)...) }
	manifest := func(params string) {
		t.Helper()
		write(t, source, "kmod.toml", "name = \"params\"\nversion = \"1.0.0\"\n\n[[module]]\nname = \"params\"\nparams = ["+params+"]\n")
	}
	const name = "/etc/modprobe.d/00-kmodctl-params.conf"
	loads := func(want string) {
		t.Helper()
		out := km("load", "params", "-k", release, "--dry-run", "verbose=1").out
		if !strings.Contains(out, "params.ko "+want+" (asked)") {
			t.Errorf("load would be\n%swant %s", out, want)
		}
	}

	manifest(`"count=3", "greeting=good morning"`)
	says(t, km("build", source).stderr, "installed "+name+" of params 1.0.0")
	loads(`count=3 greeting="good morning" verbose=1`)
	write(t, filepath.Join(root, "etc/modprobe.d"), "acme.conf", "options params count=4\n")
	loads(`count=3 greeting="good morning" count=4 verbose=1`)
	km("options", "params", "count=5")
	loads(`count=3 greeting="good morning" count=4 count=5 verbose=1`)

	// What was lost comes again, and what the manifest says now counts.
	if err := os.Remove(filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
	says(t, kmodctl(t, "--root", root, "verify").out, "missing: file "+name)
	km("repair")
	says(t, km("verify").stderr, "everything is as it should be")
	manifest(`"count=7"`)
	km("build", source)
	loads(`count=7 count=4 count=5 verbose=1`)
	km("uninstall", "params", "-k", release)
	if _, err := os.Stat(filepath.Join(root, name)); err == nil {
		t.Errorf("%s outlives the modules", name)
	}
}
