package registry

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"sync"

	"kmodctl/internal/kernel"
)

// preReleases are the words for what comes before a release, oldest first.
var preReleases = []string{"dev", "alpha", "beta", "pre", "preview", "rc"}

// preRelease finds the first of them in a version: what is before it, the word,
// and its number and whatever follows. "pre" in "1.0-preempt" is none.
var preRelease = sync.OnceValue(func() *regexp.Regexp { // few commands compare versions
	return regexp.MustCompile(`(?i)^(.*?)[-~](` + strings.Join(preReleases, "|") + `)((?:[^a-z].*)?)$`)
})

// CompareVersions orders versions of a package from old to new, and returns -1,
// 0 or 1; only equal strings give 0. They order as kernel releases do, but for
// words such as beta after "-" or "~": a kernel named 6.1.0-beta follows 6.1.0, a
// package 1.0.0-beta comes before 1.0.0.
func CompareVersions(a, b string) int {
	basea, ranka, resta := cutPreRelease(a)
	baseb, rankb, restb := cutPreRelease(b)
	return cmp.Or(
		kernel.Compare(basea, baseb),
		cmp.Compare(ranka, rankb),
		kernel.Compare(resta, restb),
		strings.Compare(a, b),
	)
}

// cutPreRelease splits a version; a release's rank is above that of every word.
func cutPreRelease(version string) (base string, rank int, rest string) {
	found := preRelease().FindStringSubmatch(version)
	if found == nil {
		return version, len(preReleases), ""
	}
	return found[1], slices.Index(preReleases, strings.ToLower(found[2])), strings.TrimLeft(found[3], ".-~")
}
