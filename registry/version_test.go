package registry

import (
	"cmp"
	"slices"
	"testing"
)

func TestVersionsOrder(t *testing.T) {
	ascending := [][]string{
		{"1.0.0-dev", "1.0.0-alpha1", "1.0.0-alpha2", "1.0.0-beta", "1.0.0-beta1", "1.0.0-beta.2", "1.0.0-beta10",
			"1.0.0-pre1", "1.0.0-preview", "1.0.0-rc1", "1.0.0-rc1-5-gabcdef", "1.0.0-RC2", "1.0.0", "1.0.0-1", "1.0.1-beta1", "1.0.1"},
		{"2.0~alpha", "2.0~rc1", "2.0"},
		{"1.9", "1.10-rc1", "1.10", "1.10.1"},
		{"1.0", "1.0-git20240101", "1.0-git20250101"},  // made after the release
		{"1.0", "1.0-preempt"}, {"1.0", "1.0-betamax"}, // no words of ours
		{"6.8.0-beta", "6.8.0", "6.8.0-31", "6.8.1"},
		{"", "0.1"}, {"-rc1", ""}, // whatever it is
	}
	for _, want := range ascending {
		for i, a := range want {
			for j, b := range want {
				if c := CompareVersions(a, b); c != cmp.Compare(i, j) {
					t.Errorf("compare %q with %q: %d", a, b, c)
				}
			}
		}
		got := slices.Clone(want)
		slices.Reverse(got)
		slices.SortFunc(got, CompareVersions)
		equal(t, "versions", got, want)
	}
}
