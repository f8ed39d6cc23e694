package kernel

import (
	"slices"
	"testing"
)

// older lists pairs of releases as distributions name them, the older one first.
var older = [][2]string{
	{"6.9.0", "6.12.0"},
	{"6.9", "6.12"},
	{"6.9.1-amd64", "6.10.0-amd64"},
	{"5.10.0-28-amd64", "6.1.0-9-amd64"},
	{"4.19.300", "4.20.0"},
	{"6.12.9", "6.12.10"},
	// Release candidates, as the kernel, Fedora, Ubuntu, Debian and Arch name them.
	{"6.8.0-rc7", "6.8.0"},
	{"6.8.0-rc7", "6.8.0-rc10"},
	{"6.8.0-rc7", "6.8.0-rc7-next-20240304"},
	{"6.8-rc7", "6.8.0"},
	{"6.8.0-rc7-amd64", "6.8.0-amd64"},
	{"6.7.12", "6.8.0-rc1"},
	{"6.11.0-0.rc7.56.fc42.x86_64", "6.11.0-63.fc42.x86_64"},
	{"6.12.0-0.rc0.20240924gitabf2050f51fd.11.fc42.x86_64", "6.12.0-0.rc1.17.fc42.x86_64"},
	{"6.8.0-060800rc7-generic", "6.8.0-060800-generic"},
	{"6.12~rc6-amd64", "6.12.0-amd64"},
	{"6.9.0-rc1-1-mainline", "6.9.0-arch1-1"},
	// RHEL, UEK, Amazon, Fedora.
	{"4.18.0-553.el8_10", "4.18.0-553.8.1.el8_10"},
	{"4.18.0-553.el8_10.x86_64", "4.18.0-553.8.1.el8_10.x86_64"},
	{"4.18.0-553.8.1.el8_10.x86_64", "4.18.0-553.16.1.el8_10.x86_64"},
	{"4.18.0-80.el8.x86_64", "4.18.0-553.el8_10.x86_64"},
	{"5.14.0-427.el9.x86_64", "5.14.0-427.13.1.el9_4.x86_64"},
	{"5.14.0-427.13.1.el9_4.x86_64", "5.14.0-427.13.1.el9_4.x86_64+rt"},
	{"5.15.0-9.96.6.el8uek.x86_64", "5.15.0-200.131.27.el8uek.x86_64"},
	{"6.1.79-99.164.amzn2023.x86_64", "6.1.79-99.167.amzn2023.x86_64"},
	{"6.8.9-300.fc40.x86_64", "6.8.10-300.fc40.x86_64"},
	{"6.8.9-300.fc39.x86_64", "6.8.9-300.fc40.x86_64"},
	// Debian, Ubuntu, Proxmox.
	{"6.1.0-9-amd64", "6.1.0-10-amd64"},
	{"6.1.0-0.deb11.21-amd64", "6.1.0-21-amd64"},
	{"6.12.117+deb12-amd64", "6.12.117+deb13-amd64"},
	{"6.8.0-31-generic", "6.8.0-101-generic"},
	{"5.15.0-25-generic", "6.8.0-1008-aws"},
	{"6.8.4-3-pve", "6.8.12-1-pve"},
	// Arch, openSUSE, Alpine, WSL.
	{"6.12.1-arch1-1", "6.12.1-arch1-2"},
	{"6.12.1-arch1-9", "6.12.1-arch2-1"},
	{"6.6.9-1-lts", "6.6.63-1-lts"},
	{"6.4.0-150600.21-default", "6.4.0-150600.23.7-default"},
	{"6.6.31-0-lts", "6.6.31-1-lts"},
	{"5.15.90.4-microsoft-standard-WSL2", "5.15.153.1-microsoft-standard-WSL2"},
	{"5.15.153.1-microsoft-standard-WSL2", "5.15.153.2-microsoft-standard-WSL2"},
	// Own builds.
	{"6.8.0", "6.8.0+"},
	{"6.8.0", "6.8.0-dirty"},
	{"6.8.0-dirty", "6.8.1"},
	{"2.6.32-754.el6", "3.10.0-1160.el7"},
}

func TestCompare(t *testing.T) {
	for _, pair := range older {
		if Compare(pair[0], pair[1]) >= 0 || Compare(pair[1], pair[0]) <= 0 {
			t.Errorf("%s is not older than %s", pair[0], pair[1])
		}
		if Compare(pair[0], pair[0]) != 0 {
			t.Errorf("%s is not equal to itself", pair[0])
		}
	}
}

func TestVersionOf(t *testing.T) {
	for release, want := range map[string]string{
		"6.12.117+deb12-amd64":     "6.12.117",
		"6.1.0-56-amd64":           "6.1.0",
		"6.8-rc7":                  "6.8.0",
		"5.15.153.1-microsoft":     "5.15.153",
		"6":                        "6.0.0",
		"6.x":                      "6.0.0",
		"linux":                    "0.0.0",
		"":                         "0.0.0",
		"6.99999999999999999999.1": "6.1073741824.1",
	} {
		if got := VersionOf(release).String(); got != want {
			t.Errorf("VersionOf(%q) = %s, want %s", release, got, want)
		}
	}
	if VersionOf("6.9").Compare(VersionOf("6.12.1")) != -1 {
		t.Error("version 6.9 is not older than 6.12.1")
	}
}

// An order that is not one would make sorting drop or repeat kernels.
func FuzzCompare(f *testing.F) {
	for i, pair := range older {
		f.Add(pair[0], pair[1], older[(i+1)%len(older)][0])
	}
	f.Add("06.8", "6.8.0", "6.08~")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for _, pair := range [][2]string{{a, b}, {b, c}, {a, c}} {
			x, y := pair[0], pair[1]
			if Compare(x, y) != -Compare(y, x) {
				t.Fatalf("Compare(%q, %q) = %d, the other way round %d", x, y, Compare(x, y), Compare(y, x))
			}
			if (Compare(x, y) == 0) != (x == y) {
				t.Fatalf("Compare(%q, %q) = %d", x, y, Compare(x, y))
			}
		}
		s := []string{a, b, c}
		slices.SortFunc(s, Compare)
		if Compare(s[0], s[1]) > 0 || Compare(s[1], s[2]) > 0 || Compare(s[0], s[2]) > 0 {
			t.Fatalf("%q is not in order", s)
		}
	})
}
