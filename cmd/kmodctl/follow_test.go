package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// following is a command that prints lines until it is interrupted.
type following struct {
	g    *guest
	cmd  *exec.Cmd
	out  *bufio.Scanner
	logs *bufio.Scanner // standard error
}

func (g *guest) start(args ...string) *following {
	f := &following{g: g, cmd: exec.Command(guestBinary, args...)}
	out, err := f.cmd.StdoutPipe()
	var logs io.Reader
	if err == nil {
		logs, err = f.cmd.StderrPipe()
	}
	if err == nil {
		err = f.cmd.Start()
	}
	if err != nil {
		g.errorf("%v: %v", args, err)
		return nil
	}
	f.out, f.logs = bufio.NewScanner(out), bufio.NewScanner(logs)
	return f
}

// next is the next line. The machine's time limit ends a wait for one that never comes.
func (f *following) next() string {
	if !f.out.Scan() {
		f.g.errorf("%v ended: %v", f.cmd.Args, f.out.Err())
	}
	fmt.Println(f.out.Text())
	return f.out.Text()
}

// interrupt is Ctrl-C; what comes after it must be nothing.
func (f *following) interrupt() {
	if err := f.cmd.Process.Signal(os.Interrupt); err != nil {
		f.g.errorf("%v", err)
	}
	for f.out.Scan() {
		f.g.errorf("%v also printed %q", f.cmd.Args, f.out.Text())
	}
	for f.logs.Scan() {
		fmt.Println(f.logs.Text())
	}
	if f.cmd.Wait(); f.cmd.ProcessState.ExitCode() != exitInterrupted {
		f.g.errorf("%v: %v", f.cmd.Args, f.cmd.ProcessState)
	}
}

// follow: log -f has every line of a module, those before it began and those after, and events each load and unload, also those
// by another program; neither has anything else.
func (g *guest) follow(string) {
	log := func(text string) {
		if err := os.WriteFile("/dev/kmsg", []byte("<6>"+text+"\n"), 0); err != nil {
			g.errorf("%v", err)
		}
	}
	log("follows: 0")
	lines := g.start("log", "-f", "follows")
	documents := g.start("log", "-f", "follows", "--json")
	const n = 200
	for i := 1; i < n; i++ { // while they begin
		log(fmt.Sprintf("follows: %d", i))
		log("another: line")
	}
	for i := range n {
		if _, text, _ := strings.Cut(lines.next(), "] "); text != fmt.Sprintf("follows: %d", i) {
			g.errorf("line %d is %q", i, text)
			break
		}
	}
	for i := range n {
		var doc logLine
		if err := json.Unmarshal([]byte(documents.next()), &doc); err != nil || doc.Text != fmt.Sprintf("follows: %d", i) || doc.Module != "follows" {
			g.errorf("document %d is %+v: %v", i, doc, err)
			break
		}
	}
	lines.interrupt()
	documents.interrupt()

	events := g.start("events", "--json")
	if !events.logs.Scan() || !strings.HasPrefix(events.logs.Text(), "following") {
		g.errorf("events does not begin: %q", events.logs.Text())
	}
	g.run(exitRefused, "load", "params", "count=101") // a load that fails is none
	if out, err := exec.Command(guestBinary, "load", "stack_user").CombinedOutput(); err != nil {
		g.errorf("%v: %s", err, out)
	}
	g.run(0, "unload", "-r", "stack_user")
	var got []string
	for range 4 {
		line := events.next()
		fmt.Println(jsonMark + line)
		var doc moduleEvent
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			g.errorf("%v", err)
		}
		got = append(got, doc.Event+" "+doc.Module)
	}
	events.interrupt()
	if want := []string{"loaded stack", "loaded stack_user", "unloaded stack_user", "unloaded stack"}; !slices.Equal(got, want) {
		g.errorf("events %q, want %q", got, want)
	}
}

// dyndbg turns the debug messages of the live module params on and off, and looks at the kernel log.
func (g *guest) dyndbg() {
	g.prints(g.run(0, "list", "params"), "params@1.0.0")
	g.says(g.run(exitNotFound, "list", "params", "stack"), "stack is not loaded")
	g.prints(g.run(0, "dyndbg", "params"), "count_set", "asked for %d")
	g.run(0, "params", "params", "count=11")
	g.run(0, "dyndbg", "params", "on", "--dry-run")
	g.run(0, "params", "params", "count=12")
	g.says(g.run(0, "dyndbg", "params", "on"), "debug messages of params") // among them those of kernel/params.c, which has the same name
	g.run(0, "params", "params", "count=13")
	g.run(0, "dyndbg", "params", "off", "--json")
	g.run(0, "params", "params", "count=14")
	if log := g.run(0, "log", "--dmesg", "params").out; strings.Count(log, "asked for") != 1 || !strings.Contains(log, "asked for 13\n") {
		g.errorf("the message was printed otherwise than it was turned on and off")
	}
	g.says(g.run(exitNotFound, "dyndbg", "stack", "on"), "stack is not loaded", "kmodctl load stack")
	g.says(g.run(exitUsage, "dyndbg", "nosuch*", "on"), "module name")
}
