package main

import (
	"io"
	"strings"
	"testing"
)

func TestArrange(t *testing.T) {
	app := newApp(&env{out: io.Discard, err: newScreen(io.Discard)})
	for _, c := range []struct{ in, want string }{
		{"build hello -k 6.1", "build -k 6.1 -- hello"},
		{"build -k 6.1 hello -k=6.12 --no-install", "build -k 6.1 -k=6.12 --no-install -- hello"},
		{"build hello --json --root /r", "--json --root /r build -- hello"},
		{"--root /r build hello -q", "--root /r -q build -- hello"},
		{"load params ports=1,2 count=-1", "load -- params ports=1,2 count=-1"},
		{"unload -r stack_user", "unload -r -- stack_user"},
		{"load -- -odd", "load -- -odd"},
		{"build --help", "build --help --"},
		{"help build", "build --help --"},
		{"help", "--help"},
		{"--version", "version --"},
		{"", ""},
	} {
		got, err := arrange(app, append([]string{"kmodctl"}, strings.Fields(c.in)...))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
		} else if text := strings.Join(got[1:], " "); text != c.want {
			t.Errorf("%s: got %s, want %s", c.in, text, c.want)
		}
	}
	for in, want := range map[string]string{
		"biuld hello":         `unknown command "biuld" (nearest: "build")`,
		"frobnicate":          `unknown command "frobnicate"`,
		"build --no-instal x": `unknown flag --no-instal of build (nearest: "--no-install")`,
		"--josn status":       `unknown flag --josn (nearest: "--json")`,
		"build hello -k":      "flag -k needs a value",
	} {
		if _, err := arrange(app, append([]string{"kmodctl"}, strings.Fields(in)...)); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
}
