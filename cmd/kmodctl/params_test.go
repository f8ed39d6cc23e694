package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/ko"
	"kmodctl/loader"
)

// TestParamsOfFiles: what the file says is printed where nothing runs, and nothing can be set there.
func TestParamsOfFiles(t *testing.T) {
	release := releases(t)[0]
	run := inRoot(t, newRoot(t, release))
	var doc paramsDocument
	out := run(0, "params", "dummy", "--json").out
	checkDocumented(t, out)
	want := []paramValue{{Param: ko.Param{Name: "numdummies", Type: "int", Description: "Number of dummy pseudo devices"}}}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Live != "" || cmp.Diff(want, doc.Params) != "" {
		t.Errorf("%s: %v, %s", out, err, cmp.Diff(want, doc.Params))
	}
	if out := run(0, "params", "8250").out; !strings.Contains(out, "nr_uarts") || !strings.Contains(out, "Maximum number of UARTs") {
		t.Errorf("params of a built-in module:\n%s", out)
	}
	run(exitUsage, "params", "dummy", "numdummies=3")
	run(exitNotFound, "params", "dumy")
}

// TestPlanParams: all that is to be set is checked before any of it is written.
func TestPlanParams(t *testing.T) {
	m := namedModule{Info: &ko.Info{Name: "net", Params: []ko.Param{{Name: "count", Type: "int"}, {Name: "rx-ring", Type: "uint"}}}, live: "live"}
	live := []loader.LiveParam{{Name: "count", Value: "1", Readable: true, Writable: true}, {Name: "rx-ring", Value: "2", Readable: true}, {Name: "other", Value: "x", Readable: true, Writable: true}}
	for _, c := range []struct {
		sets  string
		state string
		want  []paramChange
		err   string
	}{
		{"count=2", "live", []paramChange{{"count", "1", "2"}}, ""},
		{"count=2 other=y=z", "live", []paramChange{{"count", "1", "2"}, {"other", "x", "y=z"}}, ""}, // another build runs: it has other parameters
		{"count=2 rx_ring=3", "live", nil, "set rx_ring of net: it takes that only when it is loaded"},
		{"count=2 rx_ring=many", "live", nil, `set parameter rx_ring=many of net: "many" is no uint`},
		{"cout=2", "live", nil, "set parameter cout=2 of net: no such parameter"},
		{"count", "live", nil, `params net: "count" is not PARAMETER=VALUE`},
		{"count=2 dyndbg=+p", builtIn, nil, "set dyndbg of net: it is built in, and takes that at boot only"},
		{"count=2", "", nil, "set count of net: it is not loaded"},
	} {
		m.live = c.state
		runs := live
		if c.state == "" {
			runs = nil
		}
		got, err := planParams(m, runs, strings.Fields(c.sets))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if !slices.Equal(got, c.want) || text != c.err {
			t.Errorf("%s, %q: %v, %q", c.sets, c.state, got, text)
		}
	}
}

// setParams tries params on the live module params, which was loaded with count=7.
func (g *guest) setParams(dir string) {
	var doc paramsDocument
	g.document(&doc, "params", "params")
	values := map[string]paramValue{}
	for _, p := range doc.Params {
		values[p.Name] = p
	}
	if c := values["count"]; doc.Live != "live" || c.Value == nil || *c.Value != "7" || !c.Writable || c.Type != "int" {
		g.errorf("params of params: %+v", doc)
	}
	g.run(0, "params", "params", "count=8", "--dry-run")
	g.file(dir+"count", "7")
	g.document(&doc, "params", "params", "count=0x9", "greeting=good evening")
	if want := []paramChange{{"count", "7", "9"}, {"greeting", "good morning", "good evening"}}; !slices.Equal(doc.Changes, want) {
		g.errorf("changes %v, want %v", doc.Changes, want)
	}
	g.file(dir+"greeting", "good evening")
	g.says(g.run(exitRefused, "params", "params", "verbose=0", "count=101"), "the module refuses it")
	g.says(g.run(exitRefused, "params", "params", "verbose=1", "cuont=5"), "no such parameter", "count (the nearest name)")
	g.file(dir+"verbose", "N") // of the two commands above, the first set it
	g.says(g.run(exitRefused, "params", "params", "ports=80,http"), `"http" is no int`)
	g.says(g.run(exitRefused, "params", "params", "dyndbg=+p"), "only when it is loaded", "kmodctl reload params dyndbg=+p")
	g.file(dir+"count", "9")
}

// document runs kmodctl, which must print one document.
func (g *guest) document(into any, args ...string) {
	if err := json.Unmarshal([]byte(g.run(0, append(args, "--json")...).out), into); err != nil {
		g.errorf("%v: %v", args, err)
	}
}
