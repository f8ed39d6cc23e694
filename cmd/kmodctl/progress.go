package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows on a terminal what goes on right now, in one line that is
// rewritten each second; elsewhere it shows nothing, and the lines that say what
// was done stand alone.
type progress struct {
	w     io.Writer
	live  bool
	total int
	done  int
}

func (e *env) progress(total int) *progress {
	f, ok := e.err.(*os.File)
	live := ok && !e.quiet && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
	return &progress{w: e.err, live: live, total: total}
}

// step shows text until the function it returns is called, which clears it.
func (p *progress) step(text string) (end func()) {
	p.done++
	if !p.live {
		return func() {}
	}
	start, stop, stopped := time.Now(), make(chan struct{}), make(chan struct{})
	show := func() {
		fmt.Fprintf(p.w, "\r\x1b[K[%d/%d] %s %ds", p.done, p.total, text, int(time.Since(start).Seconds()))
	}
	show()
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				show()
			case <-stop:
				fmt.Fprint(p.w, "\r\x1b[K")
				return
			}
		}
	}()
	return func() { close(stop); <-stopped }
}
