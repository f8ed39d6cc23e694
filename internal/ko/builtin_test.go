package ko

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestOracleBuiltin holds what is read of every module in the image of one kernel of each series against modinfo(8).
func TestOracleBuiltin(t *testing.T) {
	for _, series := range []string{"6.1.", "6.12."} {
		t.Run(series+"x", func(t *testing.T) {
			release := installedKernel(t, series)
			dir := "/lib/modules/" + release
			modinfo := fileText(t, dir+"/modules.builtin.modinfo")
			compared, params := 0, 0
			for line := range strings.Lines(string(fileText(t, dir+"/modules.builtin"))) {
				name := strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko")
				cmd := exec.Command("modinfo", "-k", release, name)
				cmd.Env = append(os.Environ(), "LC_ALL=C")
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("modinfo %s (apt install kmod): %v", name, err)
				}
				head, want, builtin := strings.Cut(string(out), "filename:       (builtin)\n")
				if !builtin { // a file of that name, which modinfo prefers
					continue
				}
				info := Builtin(modinfo, name)
				if info == nil {
					t.Errorf("%s: nothing is said of it; modinfo says:\n%s", name, out)
					continue
				}
				_, got, _ := strings.Cut(asModinfo("(builtin)", info), "\n")
				if diff := cmp.Diff(want, got); diff != "" || head != "name:           "+info.Name+"\n" {
					t.Errorf("%s, by modinfo %q (-modinfo +ko):\n%s", name, head, diff)
				}
				compared++
				params += len(info.Params)
			}
			t.Logf("%s: %d built-in modules with %d parameters equal modinfo", release, compared, params)
			if compared < 100 || params == 0 {
				t.Errorf("only %d built-in modules with %d parameters were compared", compared, params)
			}
		})
	}
}

func fileText(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestBuiltin(t *testing.T) {
	text := []byte("snd.license=GPL\x00snd_x.parm=a:first\x00snd_x.parmtype=a:int\x00snd_x.license=GPL v2\x00")
	info := Builtin(text, "snd-x")
	if info == nil || info.Name != "snd_x" || info.License != "GPL v2" || len(info.Params) != 1 || info.Params[0] != (Param{Name: "a", Type: "int", Description: "first"}) {
		t.Errorf("snd-x is %+v", info)
	}
	if info := Builtin(text, "snd_"); info != nil {
		t.Errorf("snd_ is %+v", info)
	}
}
