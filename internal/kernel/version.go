package kernel

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Version is the numbers that a release begins with, {6, 12, 117} for
// "6.12.117+deb12-amd64". A number that is not written is 0.
//
// A distribution may keep the last number at 0 and count its fixes behind it
// ("6.1.0-56-amd64" is 6.1.192 inside): the release is all that is looked at.
type Version [3]int

// VersionOf returns the numbers at the start of a release, and the zero Version
// for a name that does not start with one.
func VersionOf(release string) Version {
	v, _, _ := cutVersion(release)
	return v
}

// Compare returns -1, 0 or 1 as v is older than, equal to or newer than w.
func (v Version) Compare(w Version) int { return slices.Compare(v[:], w[:]) }

// String returns all three numbers: "6.12.0".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// SameFlavour reports whether releases are of one series and, but for their numbers, have the same name: point
// releases of one kernel of a distribution.
func SameFlavour(a, b string) bool {
	words := func(release string) string {
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' {
				return -1
			}
			return r
		}, strings.TrimLeft(release, "0123456789."))
	}
	return slices.Equal(series(a), series(b)) && words(a) == words(b)
}

// maxNumber keeps a number of any length within an int.
const maxNumber = 1 << 30

// cutVersion splits a release after its leading numbers, three at most, and
// counts them.
func cutVersion(release string) (v Version, count int, rest string) {
	rest = release
	for count < len(v) {
		tail := rest
		if count > 0 {
			var dot bool
			if tail, dot = strings.CutPrefix(rest, "."); !dot {
				break
			}
		}
		digits := span(tail, isDigit)
		if digits == 0 {
			break
		}
		for _, c := range tail[:digits] {
			v[count] = min(v[count]*10+int(c-'0'), maxNumber)
		}
		rest = tail[digits:]
		count++
	}
	return v, count, rest
}

// Compare orders releases from old to new and returns -1, 0 or 1; only equal
// strings give 0.
//
// The leading numbers count first. What follows them is read as runs of digits
// and of letters, other characters only part them, and at the first difference
// a release candidate ("~" or "rc") is older than an end, an end older than
// a word, and a word older than a number:
//
//	6.8.0-rc7 < 6.8.0 < 6.8.0-amd64 < 6.8.0-31-generic < 6.8.1
//	4.18.0-553.el8_10 < 4.18.0-553.8.1.el8_10
func Compare(a, b string) int {
	va, _, resta := cutVersion(a)
	vb, _, restb := cutVersion(b)
	if c := va.Compare(vb); c != 0 {
		return c
	}
	for {
		var x, y run
		x, resta = nextRun(resta)
		y, restb = nextRun(restb)
		if c := x.compare(y); c != 0 {
			return c
		}
		if x.kind == end {
			return strings.Compare(a, b)
		}
	}
}

// The kinds of run, in the order in which they sort.
const (
	tilde = iota
	candidate
	end
	word
	number
)

type run struct {
	kind int
	text string // a number has no leading zeros
}

func (x run) compare(y run) int {
	c := cmp.Compare(x.kind, y.kind)
	if c == 0 && x.kind == number {
		c = cmp.Compare(len(x.text), len(y.text))
	}
	return cmp.Or(c, strings.Compare(x.text, y.text))
}

// nextRun takes the first run off a release's rest.
func nextRun(s string) (run, string) {
	s = s[span(s, func(c byte) bool { return !isDigit(c) && !isLetter(c) && c != '~' }):]
	switch {
	case s == "":
		return run{kind: end}, ""
	case s[0] == '~':
		return run{kind: tilde}, s[1:]
	case isDigit(s[0]):
		n := span(s, isDigit)
		return run{number, strings.TrimLeft(s[:n], "0")}, s[n:]
	}
	n := span(s, isLetter)
	if s[:n] == "rc" {
		return run{kind: candidate}, s[n:]
	}
	return run{word, s[:n]}, s[n:]
}

// span counts the leading bytes of s that are in a class.
func span(s string, in func(byte) bool) int {
	n := 0
	for n < len(s) && in(s[n]) {
		n++
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
