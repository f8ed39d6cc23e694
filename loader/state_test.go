package loader

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseProcModules(t *testing.T) {
	const proc = `stack_user 16384 0 - Live 0xffffffffc0a00000 (OE)
stack 16384 3 stack_user,other, Live 0xffffffffc09f0000 (OE)
k_noexit 16384 1 [permanent], Live 0x0000000000000000 (OE)
both 16384 2 stack_user,[permanent], Live 0x0000000000000000
slow 24576 1 - Loading 0x0000000000000000 (PO+)
bye 24576 0 - Unloading 0x0000000000000000 (O-)
nounload 16384 - - Live 0x0000000000000000
later 16384 0 - Live 0x0000000000000000 (E) more fields
`
	got, err := parseProcModules(strings.NewReader(proc))
	if err != nil {
		t.Fatal(err)
	}
	want := []Live{
		{Name: "stack_user", Size: 16384, State: "live", Taint: "OE"},
		{Name: "stack", Size: 16384, Refcnt: 3, Holders: []string{"stack_user", "other"}, State: "live", Taint: "OE"},
		{Name: "k_noexit", Size: 16384, Refcnt: 1, Permanent: true, State: "live", Taint: "OE"},
		{Name: "both", Size: 16384, Refcnt: 2, Holders: []string{"stack_user"}, Permanent: true, State: "live"},
		{Name: "slow", Size: 24576, Refcnt: 1, State: "coming", Taint: "PO"},
		{Name: "bye", Size: 24576, State: "going", Taint: "O"},
		{Name: "nounload", Size: 16384, Refcnt: -1, State: "live"},
		{Name: "later", Size: 16384, State: "live", Taint: "E"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	for line, cause := range map[string]string{
		"short 1":                "2 fields instead of 6",
		"a many 0 - Live 0x0":    "size",
		"a 1 some - Live 0x0":    "refcnt",
		"a 1 0 - Sleeping 0x0":   `state "Sleeping"`,
		"a 1 0 [permanent], 0x0": `state "0x0"`,
	} {
		_, err := parseProcModules(strings.NewReader("ok 1 0 - Live 0x0\n" + line + "\n"))
		if err == nil || !strings.HasPrefix(err.Error(), "line 2: "+cause) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func FuzzProcModules(f *testing.F) {
	f.Add("stack 16384 1 stack_user, Live 0xffffffffc09f0000 (OE)\n")
	f.Add("a 1 - - Live 0x0 (")
	f.Add("a 1 0 ,,[permanent], Loading ()")
	f.Add("0 0 0 0 Live 0 (0(0")
	f.Fuzz(func(t *testing.T, proc string) {
		mods, err := parseProcModules(strings.NewReader(proc))
		if err != nil {
			return
		}
		for _, m := range mods {
			if m.Name == "" || m.State == "" || strings.ContainsAny(m.Taint, "()+-") {
				t.Errorf("%q gave %+v", proc, m)
			}
		}
		st := &State{Modules: mods}
		for _, m := range mods {
			if p, err := PlanUnload(UnloadRequest{Name: m.Name, WithUnused: true, WithHolders: true, State: st}); err == nil && len(p.Steps) > len(mods)+1 {
				t.Errorf("%d removals of %d modules", len(p.Steps), len(mods))
			}
		}
	})
}

func TestParseRecords(t *testing.T) {
	const log = "6,1,5100000,-;stack: hello; world\n SUBSYSTEM=module\n DEVICE=+module:stack\n4,2,5200000,-,caller=T1;a\nno record\n4,3,x,-;b\n"
	want := []record{{5100000, "stack: hello; world"}, {5200000, "a"}}
	if diff := cmp.Diff(want, parseRecords(log), cmp.AllowUnexported(record{})); diff != "" {
		t.Error(diff)
	}
}

func TestNamed(t *testing.T) {
	for line, want := range map[string]bool{
		"snd_hda: loaded":                              true,
		"snd-hda: loaded":                              true,
		"snd_hda says hi":                              true,
		"Module snd_hda is blacklisted":                true,
		"module snd_hda: .gnu.linkonce":                true,
		"[snd_hda] up":                                 true,
		"do_init_module: 'snd_hda'->init ":             true,
		"failed to validate module [snd_hda] BTF: -22": true,
		"snd_hda_intel: loaded":                        false,
		"module other: .gnu.linkonce":                  false,
		"Module snd_hda_intel is blacklisted":          false,
		"usb 1-1: snd_hda":                             false,
		"":                                             false,
	} {
		if named(line, "snd_hda") != want {
			t.Errorf("%q: got %v", line, !want)
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add("6,1,5100000,-;stack: hello\n SUBSYSTEM=module\n")
	f.Add(";;;\n,,,;\n")
	f.Fuzz(func(t *testing.T, log string) {
		for _, r := range parseRecords(log) {
			if strings.Contains(r.text, "\n") {
				t.Errorf("%q gave %q", log, r.text)
			}
			named(r.text, "stack")
		}
	})
}

// FuzzParams: what the kernel splits is what the user gave.
func FuzzParams(f *testing.F) {
	f.Add("n=1", "text=a b")
	f.Add("x=\"a b\"", "y=\xa0")
	f.Add("a=\"", "b= c")
	f.Fuzz(func(t *testing.T, a, b string) {
		joined, err := joinParams([]string{a, b})
		if err != nil {
			return
		}
		want := []string{strings.ReplaceAll(a, `"`, ""), strings.ReplaceAll(b, `"`, "")}
		if diff := cmp.Diff(want, splitParams(joined)); diff != "" {
			t.Errorf("%q: %s", joined, diff)
		}
	})
}
