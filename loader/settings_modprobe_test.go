package loader_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kmodctl/loader"
)

// TestSettingsAsModprobe: modprobe itself is asked what it makes of our lines, behind any that a person wrote.
func TestSettingsAsModprobe(t *testing.T) {
	release := installed(t)[0]
	for _, before := range []string{"", "# mine", "options dummy numdummies=1\n# mine \\", "# C:\\\\\n"} {
		text, err := loader.SetOptions([]byte(before), "dummy", []string{`numdummies=3`, `dyndbg=func x +p`, `text=a\b\`}, nil)
		if err == nil {
			text, err = loader.SetDeny(text, "vfat", `said "no": 100% # C:\`)
		}
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "kmodctl.conf")
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		ask := func(args ...string) string {
			out, err := exec.Command("modprobe", append([]string{"-S", release, "-C", file}, args...)...).CombinedOutput()
			if err != nil {
				t.Fatalf("modprobe %v (apt install kmod): %v: %s", args, err, out)
			}
			return string(out)
		}
		if got := ask("-n", "-v", "dummy"); !strings.HasSuffix(got, "/dummy.ko numdummies=3 dyndbg=\"func x +p\" text=a\\b\\ \n") {
			t.Errorf("behind %q modprobe would do %q", before, got)
		}
		if got := ask("-n", "-v", "vfat"); !strings.HasSuffix(got, "install /bin/false \n") {
			t.Errorf("behind %q modprobe would do %q", before, got)
		}
		if got := ask("-n", "-v", "-b", "fs-vfat"); got != "" {
			t.Errorf("behind %q the alias would do %q", before, got)
		}
		if text, err = loader.SetOptions(loader.UnsetDeny(text, "vfat"), "dummy", nil, []string{"numdummies", "dyndbg", "text"}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := ask("-n", "-v", "vfat", "-b"); !strings.HasSuffix(got, "/vfat.ko \n") {
			t.Errorf("allowed again behind %q, modprobe would do %q", before, got)
		}
	}
}
