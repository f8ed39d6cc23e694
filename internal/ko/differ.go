package ko

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Difference is a section of which two modules have not the same.
type Difference struct {
	Section string `json:"section"` // its name; "ELF headers" when only the layout of the file differs
	How     string `json:"how"`     // in words
}

// Differ compares two modules, neither compressed, section by section, in the order of
// the first; none means that they are equal in every byte. What is behind the last section
// is compared as a signature. The error is a *FormatError of the one that cannot be read.
func Differ(a, b []byte) ([]Difference, error) {
	if bytes.Equal(a, b) {
		return nil, nil
	}
	first, err := readObject(a)
	if err != nil {
		return nil, err
	}
	second, err := readObject(b)
	if err != nil {
		return nil, err
	}
	var all []Difference
	ours, names := first.numbered()
	theirs, others := second.numbered()
	for _, name := range names {
		s := ours[name]
		t, ok := theirs[name]
		how := "only in the first"
		if ok {
			how = compare(first.bytes(s), second.bytes(t))
		}
		switch {
		case how == "" && !bytes.Equal(first.attributes(s), second.attributes(t)):
			how = "type, flags, size or alignment"
		case how != "" && s.name == ".symtab":
			how += first.otherSymbols(second)
		}
		all = note(all, s.name, how)
	}
	for _, name := range others {
		if _, ok := ours[name]; !ok {
			all = note(all, name.name, "only in the second")
		}
	}
	all = note(all, signatureSection, compare(a[first.end:], b[second.end:]))
	if all == nil {
		all = note(all, "ELF headers", "the layout of the file")
	}
	return all, nil
}

func note(all []Difference, section, how string) []Difference {
	if how == "" {
		return all
	}
	return append(all, Difference{section, how})
}

// compare says where two contents part, "" when they do not.
func compare(a, b []byte) string {
	if bytes.Equal(a, b) {
		return ""
	}
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	if len(a) != len(b) {
		return fmt.Sprintf("from byte %d on, %d and %d bytes long", n, len(a), len(b))
	}
	return fmt.Sprintf("from byte %d on", n)
}

// numberedName tells sections of one name apart.
type numberedName struct {
	name string
	n    int
}

// numbered returns the sections by name, and the names in the order of the file.
func (o *object) numbered() (map[numberedName]*section, []numberedName) {
	sections, names, seen := map[numberedName]*section{}, []numberedName{}, map[string]int{}
	for i := range o.sections {
		s := &o.sections[i]
		name := numberedName{s.name, seen[s.name]}
		seen[s.name]++
		sections[name] = s
		names = append(names, name)
	}
	return sections, names
}

// attributes is what a section header says but for its name, place and links, which
// follow from the other sections.
func (o *object) attributes(s *section) []byte {
	word := layouts[o.class].word
	return slices.Concat(s.header[4:8+2*word], s.header[8+3*word:8+4*word], s.header[16+4*word:])
}

// otherSymbols names what only one of two symbol tables has, a few of them.
func (o *object) otherSymbols(p *object) (text string) {
	const few = 5
	ours, _ := o.symbols() // as far as they can be read
	theirs, _ := p.symbols()
	for _, side := range []struct {
		words           string
		symbols, others []symbol
	}{{"only in the first", ours, theirs}, {"only in the second", theirs, ours}} {
		has := map[string]bool{}
		for _, s := range side.others {
			has[string(s.name)] = true
		}
		var names []string
		for _, s := range side.symbols {
			if !has[string(s.name)] {
				names = append(names, string(s.name))
			}
		}
		if len(names) > few {
			names = append(names[:few], "...")
		}
		if len(names) > 0 {
			text += "; " + side.words + ": " + strings.Join(names, " ")
		}
	}
	return text
}
