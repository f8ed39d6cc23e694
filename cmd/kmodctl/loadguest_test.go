package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// slow are lines of modprobe.d that make the inits of dep0 to dep9 take that long.
func slow(ms int) (lines string) {
	for n := range 10 {
		lines += fmt.Sprintf("options dep%d takes_ms=%d\n", n, ms)
	}
	return lines
}

// options writes /etc/modprobe.d, which kmodctl and modprobe follow.
func (g *guest) options(lines string) {
	err := os.MkdirAll("/etc/modprobe.d", 0o755)
	if err := errors.Join(err, os.WriteFile("/etc/modprobe.d/test.conf", []byte(lines), 0o644)); err != nil {
		g.errorf("%v", err)
	}
}

// deps are what top needs, and top.
func deps() (names []string) {
	for n := range 10 {
		names = append(names, fmt.Sprint("dep", n))
	}
	return append(names, "top")
}

// loadChecks is many loads at once, and one that never ends.
func (g *guest) loadChecks() {
	const many = 16
	g.options(slow(30))
	g.sameModule(many)
	g.differentModules(many)
	g.sameRefused(4)
	g.besideModprobe(6)
	g.neverEnds()
}

// together runs commands at the same time.
func (g *guest) together(commands [][]string) []result {
	results := make([]result, len(commands))
	var wg sync.WaitGroup
	for i, args := range commands {
		wg.Go(func() {
			cmd := exec.Command(args[0], args[1:]...)
			var out, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				stderr.WriteString(err.Error())
			}
			results[i] = result{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
		})
	}
	wg.Wait()
	for i, r := range results {
		fmt.Printf("$ %s\n%s%sexit %d\n", strings.Join(commands[i], " "), r.out, r.stderr, r.code)
	}
	return results
}

// said counts the results that tell a line.
func said(results []result, line string) (n int) {
	for _, r := range results {
		if slices.Contains(strings.Split(r.stderr, "\n"), line) {
			n++
		}
	}
	return n
}

// insertedBy is how many of the results say that they have inserted a module, for whatever reason.
func insertedBy(results []result, module string) (n int) {
	for _, r := range results {
		if strings.Contains("\n"+r.stderr, "\n"+module+": inserted") {
			n++
		}
	}
	return n
}

func (g *guest) wantCode(results []result, code int) {
	for i, r := range results {
		if r.code != code {
			g.errorf("command %d of %d at once: exit %d, want %d", i+1, len(results), r.code, code)
		}
	}
}

// sameModule: one of many inserts each module, and the others say that it is live.
func (g *guest) sameModule(many int) {
	results := g.together(slices.Repeat([][]string{{guestBinary, "load", "top"}}, many))
	g.wantCode(results, 0)
	g.wantLive(deps()...)
	for _, name := range deps() {
		if n := insertedBy(results, name); n != 1 {
			g.errorf("%d of %d say that they have inserted %s, want 1", n, many, name)
		}
	}
	if n := said(results, "top: already live"); n != many-1 {
		g.errorf("%d of %d say that top was live, want %d", n, many, many-1)
	}
	g.clear()
}

// sameRefused: each of many is told why the module will not start, none of them that another one was there.
func (g *guest) sameRefused(many int) {
	results := g.together(slices.Repeat([][]string{{guestBinary, "load", "lone1", "takes_ms=20", "ret=-5"}}, many))
	g.wantCode(results, exitRefused)
	for _, r := range results {
		g.says(r, "load lone1: kernel ", "refused the module: input/output error", "why:  the module's own init returned it")
	}
	g.wantLive()
}

// differentModules: all at once, some of which need the same, one that the kernel refuses and one that it is not asked for.
func (g *guest) differentModules(many int) {
	var commands [][]string
	for _, name := range slices.Concat(deps(), []string{"lone1", "lone2", "lone3"}) {
		commands = append(commands, []string{guestBinary, "load", name})
	}
	sound := len(commands)
	commands = append(commands, []string{guestBinary, "load", "lone4", "ret=-19"}, []string{guestBinary, "load", "lone5", "ret=x"})
	if len(commands) != many {
		g.errorf("%d commands, want %d", len(commands), many)
	}
	results := g.together(commands)
	g.wantCode(results[:sound], 0)
	g.wantCode(results[sound:], exitRefused)
	for i, args := range commands[:sound] {
		name := args[2]
		if n := insertedBy(results, name); n != 1 {
			g.errorf("%d say that they have inserted %s, want 1", n, name)
		}
		if own := results[i : i+1]; insertedBy(own, name)+said(own, name+": already live") != 1 {
			g.errorf("load %s does not say what became of it", name)
		}
	}
	g.says(results[sound], "load lone4: kernel ", "refused the module: no such device")
	g.says(results[sound+1], "load lone5: kernel ", "would refuse the module: invalid argument", `"x" is not a value for parameter ret`)
	g.wantLive(append(deps(), "lone1", "lone2", "lone3")...)
	g.clear()
}

// besideModprobe: half of many are modprobe, which knows nothing of our locks.
func (g *guest) besideModprobe(many int) {
	commands := slices.Repeat([][]string{{guestBinary, "load", "top"}, {"/sbin/modprobe", "top"}}, many/2)
	results := g.together(commands)
	g.wantCode(results, 0)
	for _, name := range deps() {
		if n := insertedBy(results, name); n > 1 {
			g.errorf("%d say that they have inserted %s", n, name)
		}
	}
	g.wantLive(deps()...)
	g.clear()
}

// neverEnds: an init that crashes, and one that takes too long. Both stay until the end.
func (g *guest) neverEnds() {
	start := time.Now()
	g.says(g.run(exitFailed, "load", "crash"), "load crash: its init crashed the kernel's thread (an oops)", "kernel log: ", "[crash]", "why:  ", "try:  ")
	if took := time.Since(start); took > 30*time.Second {
		g.errorf("an oops was told after %v", took)
	}
	g.file("/sys/module/crash/initstate", "coming")
	g.says(g.run(exitFailed, "load", "--timeout", "2s", "answers", "takes_ms=600000"), "load answers: its init has not returned for 2s", "msleep", "--timeout")
	g.says(g.run(exitFailed, "load", "--timeout", "1s", "crash"), "load crash: ") // nor does a second one hang
}

// slowInits is the race in which it counts what is loaded at once.
const slowInits = "each init takes 20 ms"

// race loads top with all that it needs, by kmodctl and by modprobe in turn.
func (g *guest) race(what, options string, runs int) {
	g.options(options)
	times := func(name string, args ...string) time.Duration {
		cmd := exec.Command(name, args...)
		start := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(start)
		if err != nil {
			g.errorf("%s: %v\n%s", filepath.Base(name), err, out)
		}
		if n := len(g.live()); n != len(deps()) {
			g.errorf("%s: %d modules are live, want %d", filepath.Base(name), n, len(deps()))
		}
		g.clear()
		return took
	}
	r := raced{What: what}
	for range runs {
		r.Ours = append(r.Ours, times(guestBinary, "load", "top"))
		r.Theirs = append(r.Theirs, times("/sbin/modprobe", "top"))
	}
	text, err := json.Marshal(r)
	if err != nil {
		g.errorf("%v", err)
	}
	fmt.Printf("%s%s\n", raceMark, text)
}
