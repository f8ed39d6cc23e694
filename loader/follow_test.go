package loader

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseUevent(t *testing.T) {
	for message, want := range map[string]Event{
		"add@/module/snd_hda\x00ACTION=add\x00DEVPATH=/module/snd_hda\x00SUBSYSTEM=module\x00SEQNUM=7\x00": {Module: "snd_hda", Loaded: true},
		"remove@/module/x": {Module: "x"},
		"add@/devices/virtual/net/dummy0\x00SUBSYSTEM=net\x00": {},
		"add@/module/x/holders":                                {},
		"change@/module/x":                                     {},
		"add@/module/":                                         {},
		"":                                                     {},
	} {
		got, ok := parseUevent(message)
		if ok != (want != Event{}) || ok && got != want {
			t.Errorf("%q: %+v, %v", message, got, ok)
		}
	}
}

func FuzzUevent(f *testing.F) {
	f.Add("add@/module/x\x00")
	f.Fuzz(func(t *testing.T, message string) {
		if e, ok := parseUevent(message); ok && (e.Module == "" || strings.ContainsAny(e.Module, "/\x00")) {
			t.Errorf("%q gave %+v", message, e)
		}
	})
}

// TestFollowEnds: it waits for what comes, and ends when it is told to, with the reason.
func TestFollowEnds(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	var got []string
	io.WriteString(w, "one")
	err = follow(ctx, r, func(f *os.File, buf []byte) error {
		if len(got) == 2 {
			go cancel(enough) // while the read below waits
		}
		n, err := f.Read(buf)
		if err == nil {
			got = append(got, string(buf[:n]))
			io.WriteString(w, "two")
			if len(got) == 2 {
				_, err = f.Read(buf) // what was written just now
			}
		}
		return err
	})
	if err != enough || strings.Join(got, " ") != "one two" {
		t.Errorf("%v, %q", err, got)
	}
	if _, err := r.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file was left open: %v", err)
	}
}

func TestParseDebug(t *testing.T) {
	const control = "# filename:lineno [module]function flags format\n" +
		"init/main.c:1182 [main]initcall_blacklist =p \"blacklisting initcall %s\\012\"\n" +
		"drivers/net/x.c:7 [snd_x]x_open =_ \"a \\042b\\042: %d\\012\"\n" +
		"drivers/net/x.c:9 [snd_x]x_close =pmf \"c = d [e]f =_ \\\"g\\\"\\n\" class:X\n" +
		"nonsense\n"
	got, err := parseDebug(strings.NewReader(control), "snd_x")
	want := []DebugMessage{{"drivers/net/x.c", 7, "x_open", "_", `a \042b\042: %d`}, {"drivers/net/x.c", 9, "x_close", "pmf", `c = d [e]f =_ \"g\"`}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if got[0].On() || !got[1].On() {
		t.Error("the second is on")
	}
}

func FuzzDebug(f *testing.F) {
	f.Add("a.c:1 [x]y =_ \"z\"\n")
	f.Fuzz(func(t *testing.T, control string) {
		all, _ := parseDebug(strings.NewReader(control), "x")
		for _, m := range all {
			if m.File == "" || m.Function == "" || m.Flags == "" {
				t.Errorf("%q gave %+v", control, m)
			}
		}
	})
}
