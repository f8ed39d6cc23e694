package loader

import "strings"

// normalizeAlias gives a name or a pattern the form in which depmod(8) keeps it:
// - becomes _, but not between brackets, where it makes a range.
func normalizeAlias(s string) string {
	if !strings.Contains(s, "[") {
		return strings.ReplaceAll(s, "-", "_")
	}
	b := []byte(s)
	inside := false
	for i, c := range b {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}

// globMatch is fnmatch(3) without flags, in the C locale: * and ? also stand for
// a slash and a leading dot, and a backslash makes the next byte ordinary.
func globMatch(pattern, s string) bool {
	// Where to go on when what follows the last * does not fit here.
	retry, from := -1, 0
	p, i := 0, 0
	for i < len(s) || p < len(pattern) {
		if p < len(pattern) && pattern[p] == '*' {
			p++
			retry, from = p, i
			continue
		}
		if i < len(s) && p < len(pattern) {
			if n, ok := matchByte(pattern[p:], s[i]); ok {
				p += n
				i++
				continue
			}
		}
		if retry < 0 || from >= len(s) {
			return false
		}
		from++
		p, i = retry, from
	}
	return true
}

// matchByte compares one byte with the first element of a pattern, which is not
// a *, and returns the element's length.
func matchByte(pattern string, c byte) (length int, ok bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		if length, ok := matchSet(pattern, c); length > 0 {
			return length, ok
		}
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	}
	return 1, pattern[0] == c
}

// matchSet is matchByte for [abc], [a-c] and [!abc]. A length of 0 tells a
// bracket that is never closed, which stands for itself.
func matchSet(pattern string, c byte) (length int, ok bool) {
	i := 1
	negated := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negated {
		i++
	}
	found := false
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, found != negated
		}
		low, n := setByte(pattern[i:])
		i += n
		high := low
		if i+1 < len(pattern) && pattern[i] == '-' && pattern[i+1] != ']' {
			high, n = setByte(pattern[i+1:])
			i += 1 + n
		}
		found = found || low <= c && c <= high
	}
	return 0, false
}

func setByte(pattern string) (c byte, length int) {
	if pattern[0] == '\\' && len(pattern) > 1 {
		return pattern[1], 2
	}
	return pattern[0], 1
}
