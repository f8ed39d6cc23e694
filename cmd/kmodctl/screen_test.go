package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// terminal is a screen of that width, and what it shows in the end.
func terminal(columns int) (*screen, func() string) {
	var out bytes.Buffer
	s := &screen{w: &out, columns: func() int { return columns }}
	return s, func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		return shown(out.String())
	}
}

// shown is what a terminal makes of text and of the three controls that a screen uses.
func shown(text string) string {
	lines, at := []string{""}, 0
	for len(text) > 0 {
		switch {
		case strings.HasPrefix(text, "\x1b[A"):
			at--
			text = text[3:]
			continue
		case strings.HasPrefix(text, "\x1b[J"):
			lines = append(lines[:at:at], "")
			text = text[3:]
			continue
		case text[0] == '\n':
			if at++; at == len(lines) {
				lines = append(lines, "")
			}
		case text[0] != '\r': // each line is written anew as a whole
			lines[at] += text[:1]
		}
		text = text[1:]
	}
	return strings.Join(lines, "\n")
}

func TestScreen(t *testing.T) {
	s, look := terminal(40)
	rows := s.plan([]string{"build a", "build b", "build c"}, []time.Duration{9 * time.Second, 3 * time.Second, 4 * time.Second}, 2)
	rows[0].begin()
	rows[1].begin()
	rows[1].at("CC a_file_of_a_long_name_that_does_not_fit.o")
	s.Write([]byte("added a\nadded b\n"))
	if got, want := look(), "added a\nadded b\n[0/3] 0s, about 9s left\nbuild a 0s of about 9s\nbuild b 0s of about 3s: CC a_file_of_a_"; got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
	rows[1].end()
	s.Write([]byte("built b\n"))
	if got, want := look(), "added a\nadded b\nbuilt b\n[1/3] 0s, about 9s left\nbuild a 0s of about 9s"; got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
	rows[0].end()
	rows[2].begin()
	rows[2].end()
	end := s.show("install")
	if got, want := look(), "added a\nadded b\nbuilt b\ninstall 0s"; got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
	end()
	if got, want := look(), "added a\nadded b\nbuilt b\n"; got != want {
		t.Errorf("it leaves\n%s\nwant\n%s", got, want)
	}
}

// Where no time is known for a piece of the work, none is promised for the whole.
func TestScreenUnknownTime(t *testing.T) {
	s, look := terminal(80)
	rows := s.plan([]string{"build a", "build b"}, []time.Duration{9 * time.Second, 0}, 2)
	rows[0].begin()
	if got, want := look(), "[0/2] 0s\nbuild a 0s of about 9s"; got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
	rows[0].end()
}

// Into a pipe or a file goes nothing but the lines.
func TestScreenNoTerminal(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&out)
	end := s.show("build a")
	s.Write([]byte("built a\n"))
	end()
	if out.String() != "built a\n" {
		t.Errorf("%q", &out)
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1400 * time.Millisecond: "1s", 59 * time.Second: "59s", 61 * time.Second: "1:01", time.Hour + 65*time.Second: "1:01:05",
	} {
		if got := span(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}
