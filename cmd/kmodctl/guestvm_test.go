package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/vm"
)

// What the test binary does as the program of a virtual machine, instead of guestChecks: see guestMain.
const (
	guestLoads  = "loads"      // loadChecks
	guestRace   = "race"       // race, with the number of runs behind it
	guestSigned = "signatures" // signatureChecks
)

// guestMain is what the test binary does as the program of a virtual machine.
func guestMain(mode string) int {
	g := &guest{}
	switch what, rest, _ := strings.Cut(mode, " "); what {
	case guestPackaged:
		return packagedChecks()
	case guestSecureBoot:
		os.Unsetenv(guestEnv) // for the kmodctl that it runs, which is this program too
		return secureBootChecks()
	case guestLoads:
		g.loadChecks()
	case guestRace:
		runs, _ := strconv.Atoi(rest)
		g.race("init takes no time", "", runs)
		g.race(slowInits, slow(20), runs)
	case guestSigned:
		g.signatureChecks()
	default:
		return guestChecks()
	}
	if g.failed > 0 {
		fmt.Printf("%d checks failed\n", g.failed)
		return 1
	}
	return 0
}

// kbuild builds the modules of a folder, as they would be by hand, into another folder.
func kbuild(t testing.TB, release, source, into string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	if err := os.CopyFS(dir, os.DirFS(source)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "-C", "/lib/modules/"+release+"/build", "M="+dir, "modules").CombinedOutput(); err != nil {
		t.Fatalf("build %s for %s: %v\n%s", source, release, err, out)
	}
	if err := os.MkdirAll(into, 0o755); err != nil {
		t.Fatal(err)
	}
	built, _ := filepath.Glob(filepath.Join(dir, "*.ko"))
	for _, file := range built {
		if err := os.Rename(file, filepath.Join(into, filepath.Base(file))); err != nil {
			t.Fatal(err)
		}
	}
}

// bootGuest boots a release with this test binary as its program, and returns what that printed. It must exit with 0.
func bootGuest(t testing.TB, release, mode string, c vm.Config) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, console bytes.Buffer
	c.Image, c.Init, c.Env = "/boot/vmlinuz-"+release, self, map[string]string{guestEnv: mode}
	c.MemoryMB, c.Timeout, c.Output, c.Console = 1024, 25*time.Minute, &out, &console
	cmdline := c.Append
	c.Append = strings.TrimSpace(cmdline + " no_timer_check") // it panics on a machine whose processors have too much else to do
	code, err := vm.Run(t.Context(), c)
	if err != nil || code != 0 {
		t.Fatalf("%s on %s %s: exit %d, %v\n%s\n%s", mode, release, cmdline, code, err, out.String(), console.String())
	}
	return out.String()
}

// clear removes all modules, newest first: users before what they use.
func (g *guest) clear() {
	text, err := os.ReadFile("/proc/modules")
	if err != nil {
		g.errorf("%v", err)
	}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		if err := unix.DeleteModule(name, unix.O_NONBLOCK); err != nil {
			g.errorf("remove %s: %v", name, err)
		}
	}
}
