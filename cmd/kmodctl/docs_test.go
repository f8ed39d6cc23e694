package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

const cliDoc = "../../docs/cli.md"

// TestCLIDocs holds docs/cli.md to what the commands say of themselves.
func TestCLIDocs(t *testing.T) {
	want := cliMarkdown(newApp(&env{out: io.Discard, err: newScreen(io.Discard)}))
	if *update {
		if err := os.WriteFile(cliDoc, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(cliDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/cli.md is stale: make docs")
	}
}

func cliMarkdown(app *cli.App) string {
	var b strings.Builder
	b.WriteString("# The command line\n\n<!-- Made from the commands by `make docs`; a test fails when it is stale. -->\n\n")
	b.WriteString("Flags may stand before or behind arguments, `--` ends them. Data goes to standard output, everything for people to standard\n" +
		"error. An argument with a slash, or `.` or `..`, is a path; else it is the NAME of a package, or NAME@VERSION; add, run\n" +
		"and new always take a path, load and info also the name of a .ko file.\n\n")
	b.WriteString("## Exit codes\n\n| code | meaning |\n|---|---|\n")
	for _, c := range exitTable {
		fmt.Fprintf(&b, "| %d | %s |\n", c.code, c.meaning)
	}
	b.WriteString("\n## Flags of every command\n\n" + flagTable(app.Flags))
	for _, c := range app.Commands {
		if c.Hidden {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n`%s`: %s.\n\n", c.Name, strings.TrimSpace("kmodctl "+c.Name+" "+c.ArgsUsage), c.Usage)
		text, lines, _ := strings.Cut(c.Description, "\n\nExamples:\n")
		if before, states, ok := strings.Cut(text, "\n\n   "); ok { // a list in columns
			text = before + "\n\n```\n" + unindent("   "+states) + "\n```"
		}
		fmt.Fprintf(&b, "%s\n\n", text)
		if len(c.Flags) > 0 {
			b.WriteString(flagTable(c.Flags) + "\n")
		}
		fmt.Fprintf(&b, "```console\n%s\n```\n", unindent(strings.TrimPrefix(lines, "\n")))
	}
	return b.String()
}

func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "   ")
	}
	return strings.Join(lines, "\n")
}

func flagTable(flags []cli.Flag) string {
	var b strings.Builder
	b.WriteString("| flag | |\n|---|---|\n")
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok || slices.Contains(f.Names(), "help") {
			continue
		}
		var names []string
		for _, n := range f.Names() {
			dash := "--"
			if len(n) == 1 {
				dash = "-"
			}
			names = append(names, "`"+dash+n+"`")
		}
		usage := strings.ReplaceAll(d.GetUsage(), "`", "")
		if env := d.GetEnvVars(); len(env) > 0 {
			usage += " (or $" + env[0] + ")"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(names, ", "), usage)
	}
	return b.String()
}

// checkDocumented fails for a key of a JSON document that docs/json.md does not name.
func checkDocumented(t *testing.T, text string) {
	t.Helper()
	doc, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	schema, _ := v["schema"].(string)
	if !strings.Contains(string(doc), "`"+schema+"`") {
		t.Errorf("docs/json.md does not name schema %q", schema)
	}
	_, section, _ := strings.Cut(string(doc), "`"+schema+"`")
	section, _, _ = strings.Cut(section, "\n## ")
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				if !strings.Contains(section, "`"+key+"`") && key != "schema" {
					t.Errorf("docs/json.md: %s has a key %q that is not named", schema, key)
				}
				if key != "params" { // its keys are the module's
					walk(value)
				}
			}
		case []any:
			for _, value := range v {
				walk(value)
			}
		}
	}
	walk(v)
}
