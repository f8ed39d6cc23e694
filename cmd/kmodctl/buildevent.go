package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kmodctl/build"
)

// buildEvent is a line of `build --json` while something is built; docs/json.md describes it.
type buildEvent struct {
	Event    string  `json:"event"` // begin, step or end
	Package  string  `json:"package"`
	Version  string  `json:"version"`
	Release  string  `json:"release"`
	Seconds  float64 `json:"seconds"`            // since it began
	Expected float64 `json:"expected,omitempty"` // seconds, of a begin: what the last build took
	Step     string  `json:"step,omitempty"`
	What     string  `json:"what,omitempty"`
	Outcome  string  `json:"outcome,omitempty"` // of an end: built, failed or interrupted
	Error    string  `json:"error,omitempty"`

	Class build.Class `json:"class,omitempty"` // of the error
}

// follower follows one build: for the screen, for who reads events, and for --timings.
type follower struct {
	j     *job
	step  build.Step
	shown *row
	laps  []lap
}

// lap is a step of a build and when it began.
type lap struct {
	step string
	at   time.Time
}

func (w *follower) begin() {
	w.shown.begin()
	w.event(buildEvent{Event: "begin", Expected: w.shown.expected.Seconds()})
}

// at takes note of what the build has come to; build.Job.At.
func (w *follower) at(step, what string) {
	if len(w.laps) == 0 || w.laps[len(w.laps)-1].step != step {
		w.laps = append(w.laps, lap{step, time.Now()})
	}
	text := step
	if what != "" {
		text = what
	}
	w.shown.at(text)
	w.event(buildEvent{Event: "step", Step: step, What: what})
}

func (w *follower) end(outcome string, err error) {
	w.shown.end()
	e := buildEvent{Event: "end", Outcome: outcome}
	if err != nil {
		e.Error, e.Class = err.Error(), build.ClassOf(err)
	}
	w.event(e)
}

func (w *follower) event(e buildEvent) {
	if !w.j.events {
		return
	}
	e.Package, e.Version, e.Release, e.Seconds = w.step.Package, w.step.Version, w.step.Release, w.seconds()
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.j.line("build-event", e)
}

// seconds is how long the build takes by now.
func (w *follower) seconds() float64 { return time.Since(w.shown.begun).Seconds() }

// timings says where the time went: "copy 0.02 s, isolate 0.03 s, make 0.91 s".
func (w *follower) timings() string {
	var parts []string
	for i, l := range w.laps {
		until := time.Now()
		if i+1 < len(w.laps) {
			until = w.laps[i+1].at
		}
		parts = append(parts, fmt.Sprintf("%s %.3f s", l.step, until.Sub(l.at).Seconds()))
	}
	return strings.Join(parts, ", ")
}

// keptIn is where --keep leaves the folders of builds: what is larger than /tmp likes, and is
// cleaned up by the system some day.
const keptIn = "/var/tmp"

// keepFolder copies a build's folder to where it stays, and says how to go on there.
func (j *job) keepFolder(source string, s build.Step) {
	dir, err := os.MkdirTemp(keptIn, "kmodctl-"+filepath.Base(s.Package)+"-"+s.Release+"-")
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(source))
	}
	if err != nil {
		j.changed("note: could not keep the folder of %s for %s: %v", s.Package, s.Release, err)
		return
	}
	j.changed("kept %s: cd %s && make -C %s M=$PWD CC=%s %s", s.Package, dir, s.Kernel.Tree.Path, s.Toolchain.Path, strings.Join(s.Manifest.Build.Targets, " "))
}
