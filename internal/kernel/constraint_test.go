package kernel

import (
	"strings"
	"testing"
)

func TestConstraint(t *testing.T) {
	for _, c := range []struct {
		constraint string
		yes, no    []string
	}{
		{"", []string{"6.1.0", "linux"}, nil},
		{">=5.10, <6.13",
			[]string{"5.10.0-28-amd64", "6.9.1", "6.12.117+deb12-amd64"},
			[]string{"5.9.16", "5.4.0-42-generic", "6.13.0-rc1", "6.13.0", "6.20.1"}},
		{"6.1", []string{"6.1.0-56-amd64", "6.1.55"}, []string{"6.12.1", "6.10.0", "6.2.0", "5.1.0"}},
		{"=6.1.55", []string{"6.1.55-arch1"}, []string{"6.1.5", "6.1.0-55"}},
		{"!=6.5", []string{"6.4.9", "6.6.0", "6.50.0"}, []string{"6.5.0", "6.5.13-zen1-1-zen"}},
		{"<=6.1", []string{"6.1.55", "6.0.1"}, []string{"6.2.0-rc1"}},
		{"<=6.1.0", []string{"6.1.0-56-amd64"}, []string{"6.1.1"}},
		{">6.1", []string{"6.2.0", "6.10.0"}, []string{"6.1.55", "6.0.9"}},
		{">= 6.8", []string{"6.8.0-rc7", "6.12.0"}, []string{"6.7.12"}},
		{" > 5 ,< 7,!=6.5 ", []string{"6.4.0"}, []string{"5.19.0", "7.0.0-rc1", "6.5.1"}},
		{">=3.10", nil, []string{"linux"}},
	} {
		constraint, err := ParseConstraint(c.constraint)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, release := range c.yes {
			if !constraint.Match(release) {
				t.Errorf("%q does not match %s", c.constraint, release)
			}
		}
		for _, release := range c.no {
			if constraint.Match(release) {
				t.Errorf("%q matches %s", c.constraint, release)
			}
		}
	}
}

func TestParseConstraintRefuses(t *testing.T) {
	for _, s := range []string{"~6.1", ">=", ">=6.1,", ",", "6.1.", "6.1-rc1", ">=4.18.0-553", "6.1.2.3", ">==6.1", "=>6.1", ">=5.10 <6.13", "six", "6.*", "-1"} {
		if _, err := ParseConstraint(s); err == nil || !strings.Contains(err.Error(), `"`+s+`"`) {
			t.Errorf("ParseConstraint(%q): error %v does not name it", s, err)
		}
	}
}

func FuzzParseConstraint(f *testing.F) {
	for _, s := range []string{"", ">=5.10, <6.13", "6.1", "!=6.5", ">=", "=99999999999999999999", "6.1.2.3", "~6"} {
		f.Add(s, "6.12.117+deb12-amd64")
	}
	f.Fuzz(func(t *testing.T, s, release string) {
		c, err := ParseConstraint(s)
		if err != nil || strings.TrimSpace(s) == "" {
			return
		}
		// One more term that always holds changes nothing, one that never does refuses.
		for more, want := range map[string]bool{",>=0": c.Match(release), ",<0": false} {
			both, err := ParseConstraint(s + more)
			if err != nil || both.Match(release) != want {
				t.Fatalf("%q for %q: %v, %v", s+more, release, both.Match(release), err)
			}
		}
	})
}
