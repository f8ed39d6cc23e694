package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/vm"
	"kmodctl/loader"
)

// guestEnv makes the test binary, started in a virtual machine, run the checks
// of guest_test.go instead of the tests.
const guestEnv = "KMODCTL_GUEST_CHECKS"

func TestMain(m *testing.M) {
	build.Stage()
	dkms.Stage()
	loader.Stage()
	vm.Main(func() int {
		if mode := os.Getenv(guestEnv); mode != "" {
			return guestMain(mode)
		}
		testscript.Main(tidy{m}, map[string]func(){"kmodctl": main})
		return 0
	})
}

// tidy runs the tests and removes the program that they ran.
type tidy struct{ m *testing.M }

func (t tidy) Run() int {
	code := t.m.Run()
	if built {
		path, _ := binary()
		os.RemoveAll(filepath.Dir(path))
	}
	return code
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("NO_COLOR", "1")
			return nil
		},
	})
}

var built bool

// binary is the real program, static as users get it.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kmodctl-test-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it too
		return "", err
	}
	built = true
	path := filepath.Join(dir, "kmodctl")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "urfave_cli_no_docs", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

// result is what one run of kmodctl left.
type result struct {
	code        int
	out, stderr string
}

// kmodctl runs the real program.
func kmodctl(t testing.TB, args ...string) result {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return command(t, exec.Command(path, args...))
}

func command(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// must runs kmodctl, which must exit with 0.
func must(t testing.TB, args ...string) result {
	t.Helper()
	r := kmodctl(t, args...)
	if r.code != 0 {
		t.Fatalf("kmodctl %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.stderr)
	}
	return r
}

// inRoot runs kmodctl inside a root; it must exit with code.
func inRoot(t testing.TB, root string) func(code int, args ...string) result {
	return func(code int, args ...string) result {
		t.Helper()
		r := kmodctl(t, append([]string{"--root", root}, args...)...)
		if r.code != code {
			t.Fatalf("kmodctl %s: exit %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.stderr)
		}
		return r
	}
}

// statusOf is what `kmodctl status --json` prints.
func statusOf(t testing.TB, args ...string) (doc struct {
	Packages   []packageStatus
	Foreign    []any
	Unfinished []string
}) {
	t.Helper()
	r := must(t, append(args, "status", "--json")...)
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v in %s", err, r.out)
	}
	return doc
}
