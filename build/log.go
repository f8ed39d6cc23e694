package build

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// telling finds, in what a build prints, the line that says why it failed.
type telling struct {
	line   string // the first of tellingLines; that the disk is full goes before all of them
	likely string // the first of likelyLines

	network string // the first of networkLines: those follow from it that are only likely
	full    bool   // the disk is

	unwritten bool // line is one of unwrittenLines
}

// noSpace is ENOSPC in the words of the C library: whatever else is said follows from it.
const noSpace = "No space left on device"

// Lines that name a cause, in the words of the programs that print them.
var tellingLines = anyOf(
	`^\S.*?:\d+(:\d+)?: (fatal )?error: `,                 // gcc, clang
	`^\S*(gcc|cc1|clang|ld|objtool)\S*: (fatal )?error: `, // a driver, ld.lld
	`^\S+\.[sS]:\d+: Error: `,                             // as
	`^(ERROR|FATAL): `,                                    // modpost, which says its name since 5.8
	`^Failed to parse base BTF `,                          // pahole
	`^error: unknown warning option `,                     // clang
	`^virtual memory exhausted: |^\S*cc1: out of memory `, // gcc
	`undefined reference to `,                             // ld
	`^\S*ld(\.bfd|\.lld)?: .*(cannot find|No such file|unrecognized|multiple definition)`,
	`\*\*\* .*  Stop\.$`, // make: no rule, missing separator
	`^configure: error: `,
	`^patch: \*\*\*\* `,
	`^Hunk #\d+ FAILED at `,
	`^can't find file to patch `,
	`^Reversed \(or previously applied\) patch detected`,
)

// Lines that may name it: a missing program does not always end a build, and
// make's last words name only what was not made.
var likelyLines = anyOf(
	`^(/bin/)?(sh|bash|dash): .*(not found|Permission denied|No such file)`,
	`^\S+: \d+: .*(not found|Permission denied)$`, // a script, in dash's words
	`^\S*make(\[\d+\])?: \*\*\* `,
)

// Lines of programs that could not write and do not say why: fixdep, dash.
var unwrittenLines = anyOf(
	`^fixdep: not all data was written to the output$`,
	`^(/bin/)?(sh|dash): \d+: (printf|echo): .*I/O error$`,
)

const lineLen = 400 // of a line that goes into an error, in bytes

// read looks at one line of the log.
func (t *telling) read(line string) {
	if !t.full && strings.Contains(line, noSpace) {
		t.line, t.full, t.unwritten = line, true, false
	}
	if t.line != "" {
		return
	}
	if tellingLines().MatchString(line) {
		t.line = line
	} else if unwrittenLines().MatchString(line) {
		t.line, t.unwritten = line, true
	} else if t.network == "" && networkLines().MatchString(line) {
		t.network = line
	} else if t.likely == "" && likelyLines().MatchString(line) {
		t.likely = line
	}
}

// anyOf is a regular expression that is compiled when it is needed: most commands
// need few, and wait for all at their start.
func anyOf(patterns ...string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(strings.Join(patterns, "|")) })
}

// noRule is make's, who does not know of which sources an object can be made.
var noRule = anyOf("No rule to make target [`']([^']+)\\.o', needed by ")

// noSource says which file is missing for an object that kbuild was told to make.
func noSource(source, line string) (string, bool) {
	found := noRule().FindStringSubmatch(line)
	if found == nil || !filepath.IsLocal(found[1]) {
		return "", false
	}
	root, err := os.OpenRoot(source)
	if err != nil {
		return "", false
	}
	defer root.Close()
	for _, ext := range []string{".c", ".S", ".rs"} {
		if isFile(root, found[1]+ext) {
			return "", false
		}
	}
	lists := path.Join(path.Dir(found[1]), "Kbuild")
	if makefile := path.Join(path.Dir(found[1]), "Makefile"); !isFile(root, lists) && isFile(root, makefile) {
		lists = makefile
	}
	return fmt.Sprintf("%s names %s.o, but there is no %[2]s.c (or .S, .rs)", lists, found[1]), true
}

var position = anyOf(`^([^\s:]+):(\d+)(:\d+)?: `)

// explain returns the telling line, its path relative to the source, and the line
// of the source that it points at. The copy is at source; work is its path in the
// log.
func (t *telling) explain(source, work string) (line string, code []string) {
	line = t.line
	switch {
	case t.offline():
		line = ErrNoNetwork.Error() + ": " + t.network
	case line == "":
		line = t.likely
	}
	line = strings.ReplaceAll(line, work+"/", "")
	if len(line) > lineLen {
		line = line[:lineLen] + "..."
	}
	line = strings.ToValidUTF8(line, "?")
	if why, ok := noSource(source, line); ok {
		return why, nil
	}
	at := position().FindStringSubmatch(line)
	if at == nil {
		return line, nil
	}
	n, err := strconv.Atoi(at[2])
	if err != nil {
		return line, nil
	}
	if text, ok := sourceLine(source, at[1], n); ok {
		code = []string{fmt.Sprintf("%d | %s", n, text)}
	}
	return line, code
}

// sourceLine reads line n of a file of the copy. The log is the source's own work
// and may name anything: what lies outside, or is no file, is not read.
func sourceLine(source, name string, n int) (string, bool) {
	root, err := os.OpenRoot(source)
	if err != nil {
		return "", false
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would block
	if err != nil {
		return "", false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", false
	}
	r := bufio.NewReader(io.LimitReader(f, sourceLen))
	for at := 1; ; {
		part, more, err := r.ReadLine()
		if err != nil {
			return "", false
		}
		if at == n {
			return strings.ToValidUTF8(string(part[:min(len(part), lineLen)]), "?"), true
		}
		if !more {
			at++
		}
	}
}

const sourceLen = 16 << 20 // of a source file that is looked at, in bytes

// logLen bounds what a build may write into its log, in bytes.
const logLen = 64 << 20

// capped passes on the first bytes of a log and drops what comes after them. It
// never fails: the disk may be full, and a build that is cut off cannot say so.
type capped struct {
	to   io.Writer
	left int
	err  error // first error of to
}

func (c *capped) Write(p []byte) (int, error) {
	if c.left == 0 || c.err != nil {
		return len(p), nil
	}
	n, err := c.to.Write(p[:min(len(p), c.left)])
	c.left -= n
	if err == nil && c.left == 0 {
		_, err = fmt.Fprintf(c.to, "\nlog cut at %d MiB\n", logLen>>20)
	}
	c.err = err
	return len(p), nil
}

// lines passes bytes on and hands over each line; a longer one than any compiler
// writes is handed over in part.
type lines struct {
	to   io.Writer
	each func(line string)
	part []byte
}

const partLen = 64 << 10

func (l *lines) Write(p []byte) (int, error) {
	n, err := l.to.Write(p)
	for _, b := range p[:n] {
		if b == '\n' {
			l.flush()
		} else if len(l.part) < partLen {
			l.part = append(l.part, b)
		}
	}
	return n, err
}

func (l *lines) flush() {
	if len(l.part) > 0 {
		l.each(strings.TrimRight(string(l.part), "\r"))
		l.part = l.part[:0]
	}
}
