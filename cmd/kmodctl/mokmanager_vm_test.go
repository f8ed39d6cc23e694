package main

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
)

// enrolling is what enrollSteps say, at the blue screen of shim.
func enrolling(cert *x509.Certificate) []glance {
	sum := sha1.Sum(cert.Raw)
	const down, enter = "\x1b[B", "\r"
	return []glance{
		{"Shim UEFI key management", ""},
		{"Press any key to perform MOK management", " "},
		{"Enroll MOK", down + enter},
		{"View key 0", enter},
		{cert.Subject.CommonName, ""},
		{fmt.Sprintf("% X", sum[:10]), ""},
		{fmt.Sprintf("% X", sum[10:]), " "},
		{"Continue", down + enter},
		{"Enroll the key(s)?", ""},
		{"Yes", down + enter},
		{"Password:", "bcdefghijk" + enter}, // that of /mod/hash
		{"Reboot", enter},
	}
}

// glance is a text on the screen, and what is typed when it is there.
type glance struct{ sees, types string }

// person sits before the machine: reads its console, and types.
type person struct {
	todo   []glance
	typed  *io.PipeWriter
	screen bytes.Buffer // what the console has shown
	news   string       // what it has shown since the last glance
}

func newPerson(t *testing.T) (p *person, keyboard io.Reader) {
	keyboard, typed := io.Pipe()
	t.Cleanup(func() { typed.Close() })
	return &person{typed: typed}, keyboard
}

// escapes are how a terminal is told of places and colours.
var escapes = regexp.MustCompile(`\x1b\[[0-9;=?]*[A-Za-z]`)

func (p *person) Write(text []byte) (int, error) {
	p.screen.Write(text)
	p.news = escapes.ReplaceAllString(p.news+string(text), "")
	for len(p.todo) > 0 {
		_, after, seen := strings.Cut(p.news, p.todo[0].sees)
		if !seen {
			break
		}
		if _, err := io.WriteString(p.typed, p.todo[0].types); err != nil {
			return 0, err
		}
		p.news, p.todo = after, p.todo[1:]
	}
	return len(text), nil
}

// enrolled are the checks after the blue screen: the key is trusted, and a module by it loads.
func (g *guest) enrolled() {
	g.run(0, "load", "/mod/untrusted/hello.ko")
	g.says(g.run(0, "key", "enroll", "mok2"), "is in MokListRT")
	g.run(0, "secureboot")
}
