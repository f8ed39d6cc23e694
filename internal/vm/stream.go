package vm

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"sync"
)

// The line that carries the program's output is framed by pid 1:
//
//	<noise of the firmware> FRAME begin\n <output> FRAME exit 0\n
//
// where FRAME holds a random token of this run, so that no output can be taken
// for it by accident. The end may also be "FRAME signal 11\n".

// frame is what every marker of a run starts with.
func frame(token string) string { return "\x1ekmodctl-vm:" + token + ":" }

// output takes the raw line and passes on what the program printed.
type output struct {
	frame []byte
	to    io.Writer
	onEnd func() // called once, when the result has arrived

	mu     sync.Mutex
	rest   []byte // not yet passed on: may be the start of a marker
	state  string // "", "begin", then "exit" or "signal"
	result int    // exit code or signal number
	err    error  // first error of to
}

func newOutput(token string, to io.Writer, onEnd func()) *output {
	return &output{frame: []byte(frame(token)), to: to, onEnd: onEnd}
}

// begun reports whether the program was started.
func (o *output) begun() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state != ""
}

// ended reports whether the guest has told how the program ended.
func (o *output) ended() bool { return o.state == "exit" || o.state == "signal" }

// Write never fails: the guest must not be stopped by a reader who went away.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, p...)
	for !o.ended() {
		at := bytes.Index(o.rest, o.frame)
		if at < 0 {
			o.pass(len(o.rest) - partial(o.rest, o.frame))
			break
		}
		o.pass(at)
		line, rest, whole := bytes.Cut(o.rest[len(o.frame):], []byte("\n"))
		if !whole {
			break
		}
		word, number, _ := strings.Cut(string(line), " ")
		o.state, o.rest = word, rest
		o.result, _ = strconv.Atoi(number)
		if o.ended() {
			o.onEnd()
		}
	}
	return len(p), nil
}

// pass hands on the first n bytes; those before the begin marker are nobody's.
func (o *output) pass(n int) {
	if o.state == "begin" && n > 0 && o.err == nil {
		_, o.err = o.to.Write(o.rest[:n])
	}
	o.rest = o.rest[n:]
}

// partial is the length of the longest end of data that is a start of mark.
func partial(data, mark []byte) int {
	for n := min(len(data), len(mark)-1); n > 0; n-- {
		if bytes.HasPrefix(mark, data[len(data)-n:]) {
			return n
		}
	}
	return 0
}

// tail keeps the last 8 KiB that are written to it, and passes everything on.
type tail struct {
	to   io.Writer // or nil
	data []byte
	err  error // first error of to
}

const tailSize = 8 << 10

// Write never fails, for the same reason as that of output.
func (t *tail) Write(p []byte) (int, error) {
	if t.to != nil && t.err == nil {
		_, t.err = t.to.Write(p)
	}
	t.data = append(t.data, p...)
	if over := len(t.data) - tailSize; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

// String is what was kept, from the start of a line, without the serial line's
// carriage returns.
func (t *tail) String() string {
	s := strings.ReplaceAll(string(t.data), "\r", "")
	if len(t.data) == tailSize {
		_, s, _ = strings.Cut(s, "\n")
	}
	return strings.TrimSpace(s)
}
