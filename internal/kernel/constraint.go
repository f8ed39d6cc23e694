package kernel

import (
	"fmt"
	"slices"
	"strings"
)

// Constraint says which releases something applies to, by their version numbers.
// The zero Constraint matches every release.
type Constraint struct{ terms []term }

type term struct {
	op   string
	want []int // as many numbers as were written
}

// operators has each operator before those that it begins with.
var operators = []string{">=", "<=", "!=", ">", "<", "="}

// ParseConstraint reads terms parted by commas, which must all hold, for
// instance ">=5.10, <6.13". A term is a version of one to three numbers after
// one of >=, <=, !=, >, <, = (or nothing, which means =). "" matches every
// release.
//
// Only as many numbers are compared as the term has. So "6.1" and "=6.1" mean
// the 6.1 series, "<=6.1" includes 6.1.55, ">6.1" begins at 6.2, and "<6.13"
// leaves 6.13.0-rc1 out, which has the interfaces of 6.13 already.
func ParseConstraint(s string) (Constraint, error) {
	var c Constraint
	if strings.TrimSpace(s) == "" {
		return c, nil
	}
	for text := range strings.SplitSeq(s, ",") {
		text = strings.TrimSpace(text)
		t := term{op: "="}
		version := text
		for _, op := range operators {
			if after, ok := strings.CutPrefix(text, op); ok {
				t.op, version = op, strings.TrimSpace(after)
				break
			}
		}
		v, count, rest := cutVersion(version)
		if count == 0 || rest != "" {
			return Constraint{}, fmt.Errorf("parse constraint %q: %q is not a kernel version of one to three numbers, as in >=6.12", s, text)
		}
		t.want = v[:count]
		c.terms = append(c.terms, t)
	}
	return c, nil
}

// Match reports whether the numbers of a release satisfy every term.
func (c Constraint) Match(release string) bool {
	have := VersionOf(release)
	for _, t := range c.terms {
		if !t.holds(slices.Compare(have[:len(t.want)], t.want)) {
			return false
		}
	}
	return true
}

// holds takes the order of the release's numbers against the term's.
func (t term) holds(order int) bool {
	switch t.op {
	case ">=":
		return order >= 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	case "<":
		return order < 0
	case "!=":
		return order != 0
	}
	return order == 0
}
