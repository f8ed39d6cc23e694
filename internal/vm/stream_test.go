package vm

import (
	"bytes"
	"strings"
	"testing"
)

// However the line is cut into pieces, the program's output is the same, and
// what only looks like a marker is output.
func TestOutputIsFramed(t *testing.T) {
	const token = "TOKEN"
	printed := "one\n\x1ekmodctl-vm:OTHER:exit 0\n\x1e\x1ekmodctl\x1ekmodctl-vm:TOKE, no line end"
	line := "\x1b[2Jfirmware\r\n" + frame(token) + "begin\n" + printed + frame(token) + "exit 3\nstray"
	for size := 1; size <= len(line); size++ {
		var got bytes.Buffer
		ends := 0
		o := newOutput(token, &got, func() { ends++ })
		for rest := line; rest != ""; {
			n := min(size, len(rest))
			o.Write([]byte(rest[:n]))
			rest = rest[n:]
		}
		if got.String() != printed || o.state != "exit" || o.result != 3 || ends != 1 {
			t.Fatalf("in pieces of %d: output %q, %s %d, %d ends", size, got.String(), o.state, o.result, ends)
		}
	}
}

// A prompt without a line end must be seen at once.
func TestOutputIsNotHeldBack(t *testing.T) {
	var got bytes.Buffer
	o := newOutput("TOKEN", &got, func() {})
	o.Write([]byte(frame("TOKEN") + "begin\nname? "))
	if got.String() != "name? " {
		t.Errorf("passed on %q", got.String())
	}
}

func TestTailStartsWithAWholeLine(t *testing.T) {
	var short, long tail
	short.Write([]byte("\r\none\r\ntwo\r\n"))
	if got := short.String(); got != "one\ntwo" {
		t.Errorf("got %q", got)
	}
	for range 1000 {
		long.Write([]byte("a line of 20 bytes.\n"))
	}
	if got, want := long.String(), strings.TrimSpace(strings.Repeat("a line of 20 bytes.\n", tailSize/20)); got != want {
		t.Errorf("kept %d bytes: %.30q", len(got), got)
	}
}
