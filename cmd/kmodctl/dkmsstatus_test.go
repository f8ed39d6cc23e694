package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDKMSStatus holds the lines to those that DKMS 3.4 prints.
func TestDKMSStatus(t *testing.T) {
	on := func(release string, b dkmsBuild) dkmsBuild {
		b.dkmsTarget = dkmsTarget{release, "x86_64"}
		return b
	}
	modules := []dkmsModule{
		{name: "zeta", version: "1.0", broken: true},
		{name: "mid", version: "2.0", builds: []dkmsBuild{on("6.9.0", dkmsBuild{}), on("6.10.0", dkmsBuild{installed: true})}},
		{name: "mid", version: "10.0"},
		{name: "old", version: "1", builds: []dkmsBuild{on("6.1.0-56-amd64", dkmsBuild{installed: true, originals: true, differs: true})}},
		{name: "part", version: "1", builds: []dkmsBuild{on("6.9.0", dkmsBuild{originals: true, missing: true, differs: true}), on("6.10.0", dkmsBuild{differs: true})}},
	}
	for line, want := range map[string]string{
		"status": `mid/10.0: added
mid/2.0, 6.10.0, x86_64: installed
mid/2.0, 6.9.0, x86_64: built
old/1, 6.1.0-56-amd64, x86_64: installed (Original modules exist) (Differences between built and installed modules)
part/1, 6.10.0, x86_64: built
part/1, 6.9.0, x86_64: built (Original modules exist) (Built modules are missing in the kernel modules folder)
zeta/1.0: broken
`,
		"status -k 6.9.0": `mid/10.0: added
mid/2.0, 6.9.0, x86_64: built
old/1: added
part/1, 6.9.0, x86_64: built (Original modules exist) (Built modules are missing in the kernel modules folder)
zeta/1.0: broken
`,
		"status mid/2.0 -k 6.9.0 -k 6.10.0/x86_64": "mid/2.0, 6.9.0, x86_64: built\nmid/2.0, 6.10.0, x86_64: installed\n",
		"status -m mid -v 2.0 -k 6.9.0/i686":       "mid/2.0: added\n",
		"status mi* -k 6.9*":                       "mid/10.0: added\nmid/2.0, 6.9.0, x86_64: built\n",
		"status -k  -m old":                        "old/1, 6.1.0-56-amd64, x86_64: installed (Original modules exist) (Differences between built and installed modules)\n",
		"status --all old":                         "old/1, 6.1.0-56-amd64, x86_64: installed (Original modules exist) (Differences between built and installed modules)\n",
		"status none":                              "",
	} {
		c, err := parseDKMS(strings.Split(line, " "), lookAt)
		if err == nil {
			err = c.check()
		}
		lines, _ := dkmsStatus(modules, c)
		got := strings.Join(lines, "\n")
		if got != "" {
			got += "\n"
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("dkms %s: %v\n%s", line, err, diff)
		}
	}
}
