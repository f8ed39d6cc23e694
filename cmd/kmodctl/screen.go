package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen is where lines for people go. Below them a terminal shows what goes on right
// now, rewritten each second; elsewhere the lines that say what was done stand alone.
// Several goroutines may use it.
type screen struct {
	w       io.Writer
	columns func() int // of the terminal; nil where nothing is shown

	mu    sync.Mutex
	rows  []*row
	total *plan
	drawn int           // lines that stand on the terminal and will be rewritten
	stop  chan struct{} // ends the ticker; nil while there is none
}

// newScreen writes to w, which may be a terminal.
func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd())) {
		s.columns = func() int {
			if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
				return columns
			}
			return 80
		}
	}
	return s
}

// Write puts whole lines above what is shown.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	n, err := s.w.Write(p)
	s.draw()
	return n, err
}

// row is one thing that goes on.
type row struct {
	s        *screen
	text     string
	expected time.Duration // 0 when nobody knows
	begun    time.Time
	step     string
}

// show shows text until end is called.
func (s *screen) show(text string) (end func()) { return s.begin(text).end }

// begin shows text, and what its work has come to.
func (s *screen) begin(text string) *row {
	r := &row{s: s, text: text}
	r.begin()
	return r
}

func (r *row) begin() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.begun = time.Now()
	r.s.clear()
	r.s.rows = append(r.s.rows, r)
	r.s.draw()
	if r.s.columns != nil && r.s.stop == nil {
		r.s.stop = make(chan struct{})
		go r.s.tick(r.s.stop)
	}
}

// at says what the row's work has come to.
func (r *row) at(step string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.step = step // shown with the next second: a build has hundreds
}

func (r *row) end() {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	for i := range s.rows {
		if s.rows[i] == r {
			s.rows = append(s.rows[:i:i], s.rows[i+1:]...)
			break
		}
	}
	if s.total != nil && s.total.ended(r) {
		s.total = nil
	}
	if len(s.rows) == 0 && s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
	s.draw()
}

func (s *screen) tick(stop <-chan struct{}) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.mu.Lock()
			s.clear()
			s.draw()
			s.mu.Unlock()
		case <-stop:
			return
		}
	}
}

func (s *screen) clear() {
	if s.drawn > 0 {
		fmt.Fprintf(s.w, "\r%s\x1b[J", strings.Repeat("\x1b[A", s.drawn-1))
	}
	s.drawn = 0
}

func (s *screen) draw() {
	if s.columns == nil || len(s.rows) == 0 {
		return
	}
	now, width := time.Now(), s.columns()-1 // a full line would wrap
	var lines []string
	if s.total != nil {
		lines = append(lines, s.total.line(now))
	}
	for _, r := range s.rows {
		lines = append(lines, r.line(now))
	}
	for i, line := range lines {
		if runes := []rune(line); len(runes) > width {
			lines[i] = string(runes[:width])
		}
	}
	fmt.Fprint(s.w, strings.Join(lines, "\n"))
	s.drawn = len(lines)
}

func (r *row) line(now time.Time) string {
	line := r.text + " " + span(now.Sub(r.begun))
	if r.expected > 0 {
		line += " of about " + span(r.expected)
	}
	if r.step != "" {
		line += ": " + r.step
	}
	return line
}

// plan is work of several rows, some of them yet to begin.
type plan struct {
	rows  []*row
	left  map[*row]bool
	lanes int // how many go on at once
	begun time.Time
}

// plan announces work and returns a row for each piece of it, to be begun and ended; expected
// is how long it takes, 0 where nobody knows.
func (s *screen) plan(texts []string, expected []time.Duration, lanes int) []*row {
	p := &plan{left: map[*row]bool{}, lanes: lanes, begun: time.Now()}
	for i, text := range texts {
		r := &row{s: s, text: text, expected: expected[i]}
		p.rows = append(p.rows, r)
		p.left[r] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(texts) > 1 {
		s.total = p
	}
	return p.rows
}

// ended notes that a row's work is done, and reports whether it was the last.
func (p *plan) ended(r *row) bool {
	delete(p.left, r)
	return len(p.left) == 0
}

func (p *plan) line(now time.Time) string {
	line := fmt.Sprintf("[%d/%d] %s", len(p.rows)-len(p.left), len(p.rows), span(now.Sub(p.begun)))
	if left, known := p.remaining(now); known {
		line += ", about " + span(left) + " left"
	}
	return line
}

// remaining is how long it will go on: no shorter than its longest piece. It is known when
// that of each piece is.
func (p *plan) remaining(now time.Time) (left time.Duration, known bool) {
	var sum, longest time.Duration
	for r := range p.left {
		if r.expected == 0 {
			return 0, false
		}
		piece := r.expected
		if !r.begun.IsZero() {
			piece = max(0, piece-now.Sub(r.begun))
		}
		sum, longest = sum+piece, max(longest, piece)
	}
	return max(longest, sum/time.Duration(p.lanes)), true
}

// span is a duration in whole seconds: 9s, 1:05, 1:00:05.
func span(d time.Duration) string {
	s := int(d.Round(time.Second) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}
