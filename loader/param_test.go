package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
)

func TestCheckParam(t *testing.T) {
	info := &ko.Info{Name: "net", Params: []ko.Param{{Name: "count", Type: "int"}, {Name: "tiny", Type: "byte"}, {Name: "on", Type: "bool"},
		{Name: "ports", Type: "array of ushort"}, {Name: "text", Type: "charp"}, {Name: "own"}, {Name: "rx-ring", Type: "uint"}}}
	for param, want := range map[string]string{
		"count=0x7f": "", "count=-2147483648": "", "count=+1": "", "tiny=0377": "", "on": "", "on=oN": "", "on=nope": "", "ports=80,443": "",
		"text=": "", `text="a b"`: "", "own": "", "own=x": "", "rx_ring=1": "", "dyndbg=+p": "", "async_probe": "", `count="5"`: "",
		"count=2147483648": `"2147483648" is no int`, "count=many": `"many" is no int`, "count=08": `"08" is no int`, "count=": `"" is no int`, "count=-+1": `"-+1" is no int`,
		"count=1_0": `"1_0" is no int`, "tiny=256": `"256" is no byte`, "tiny=-1": `"-1" is no byte`, "on=x": `"x" is no bool`, "ports=80,,443": `"" is no ushort`,
		"count": "it takes a value (int)", "cuont=1": "no such parameter (count)", "Count=1": "no such parameter (count)", "rx-rnig=1": "no such parameter (rx-ring)",
		"zzzzzz=1": "no such parameter ()", "=1": "not of the form name=value, or a quote that the kernel has no way to write",
	} {
		got, bad := "", (*ParamError)(nil)
		if err := CheckParam(info, param); errors.As(err, &bad) {
			got = bad.Reason
			if got == "no such parameter" {
				got += " (" + bad.Near + ")"
			}
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", param, got, want)
		}
	}
}

// FuzzCheckParam: whatever is written, it is taken, or a *ParamError says why not.
func FuzzCheckParam(f *testing.F) {
	for _, kind := range []string{"int", "array of byte", "bool", "charp", "array of "} {
		f.Add(kind, "n=-0x")
	}
	f.Fuzz(func(t *testing.T, kind, param string) {
		var bad *ParamError
		err := CheckParam(&ko.Info{Params: []ko.Param{{Name: "n", Type: kind}}}, param)
		if err != nil && (!errors.As(err, &bad) || bad.Reason == "") {
			t.Errorf("%q of type %q: %v", param, kind, err)
		}
	})
}

// TestLiveParams reads and sets what a folder shows as a kernel's sysfs does.
func TestLiveParams(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "sys/module/snd_x/parameters")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(dir, 0o755))
	must(os.WriteFile(dir+"/count", []byte("3\n"), 0o644))
	must(os.WriteFile(dir+"/ports", []byte("80,443\n"), 0o444))
	got, err := LiveParams(kernel.Root(root), "snd-x")
	must(err)
	want := []LiveParam{{"count", "3", true, true}, {"ports", "80,443", true, false}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	now, err := SetParam(kernel.Root(root), "snd-x", "count", `"4"`)
	must(err)
	if now != "4" {
		t.Errorf("count is %q after it was set", now)
	}
	if _, err := SetParam(kernel.Root(root), "snd-x", "new", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a parameter that is not there: %v", err)
	}
	must(os.Mkdir(filepath.Join(root, "sys/module/bare"), 0o755))
	if got, err := LiveParams(kernel.Root(root), "bare"); err != nil || !slices.Equal(got, nil) {
		t.Errorf("a module without parameters: %v, %v", got, err)
	}
	var absent *NotLiveError
	if _, err := LiveParams(kernel.Root(root), "other"); !errors.As(err, &absent) {
		t.Errorf("a module that is not loaded: %v", err)
	}
}
