package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

func cmdEvents(e *env) *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "print each load and unload of a module, by whomever, as it happens",
		Description: examples("One line for each, until Ctrl-C; with --json each is a document of one line. A load that failed is none.",
			"kmodctl events", "kmodctl events --json"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if !e.root.IsHost() {
				return usagef("events are the running kernel's: --root %s has none", e.root)
			}
			return loader.FollowEvents(c.Context, func() { e.say("following modules, Ctrl-C ends it") }, e.event)
		},
	}
}

// moduleEvent is a document of events.
type moduleEvent struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"` // loaded, unloaded, lost
	Module string    `json:"module,omitempty"`
}

func (e *env) event(event loader.Event) error {
	m := moduleEvent{Time: time.Now(), Event: "unloaded", Module: event.Module}
	switch {
	case event.Lost:
		m.Event = "lost"
	case event.Loaded:
		m.Event = "loaded"
	}
	switch {
	case e.json:
		return e.line("event", m)
	case event.Lost:
		e.changed("note: events were lost, as too many came at once (kmodctl list has what is loaded)")
		return nil
	}
	_, err := fmt.Fprintf(e.out, "%s %-8s %s\n", m.Time.Format(time.DateTime), m.Event, m.Module)
	return err
}
