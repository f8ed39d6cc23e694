package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
)

// guest is testdata/guest, built for the tests.
var guest string

// hangOn makes the test binary boot the image that it names and stay in Run,
// for the test that kills it.
const hangOn = "KMODCTL_VM_TEST_HANG"

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	if image := os.Getenv(hangOn); image != "" {
		_, err := Run(context.Background(), Config{Image: image, Init: os.Getenv("KMODCTL_VM_TEST_INIT"), Args: []string{"hang"}, Output: os.Stdout})
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "kmodctl-vm-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	guest = filepath.Join(dir, "guest")
	build := exec.Command("go", "build", "-o", guest, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build testdata/guest: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// release finds an installed kernel of a series and its image.
func release(t *testing.T, series string) (name, image string) {
	t.Helper()
	found, _ := filepath.Glob("/boot/vmlinuz-" + series + ".*")
	if len(found) == 0 {
		t.Fatalf("no kernel %s in /boot: .ci/setup test", series)
	}
	return strings.TrimPrefix(found[0], "/boot/vmlinuz-"), found[0]
}

// onEach runs a test on both series.
func onEach(t *testing.T, test func(t *testing.T, release, image string)) {
	t.Parallel()
	for _, series := range []string{"6.1", "6.12"} {
		t.Run(series, func(t *testing.T) {
			t.Parallel()
			name, image := release(t, series)
			test(t, name, image)
		})
	}
}

// run boots c, which must work, and returns what the program printed.
func run(t *testing.T, c Config) string {
	t.Helper()
	var out bytes.Buffer
	c.Init, c.Output = guest, &out
	exit, err := Run(t.Context(), c)
	if err != nil || exit != 0 {
		t.Fatalf("exit code %d, error %v, output %q", exit, err, out.String())
	}
	return out.String()
}

// fails boots c, which must end in an *Error.
func fails(t *testing.T, c Config) *Error {
	t.Helper()
	c.Init = guest
	exit, err := Run(t.Context(), c)
	var e *Error
	if !errors.As(err, &e) || exit != -1 {
		t.Fatalf("exit code %d, error %v; want -1 and an *Error", exit, err)
	}
	if e.Image != c.Image {
		t.Errorf("error names the image %q, want %q", e.Image, c.Image)
	}
	return e
}

// A program gets what Config says, byte for byte, and its exit code comes back.
func TestArgumentsArriveExactly(t *testing.T) {
	onEach(t, func(t *testing.T, _, image string) {
		args := []string{"a b", `"quoted"`, "ports=1,2", "", "--", "-x", "grüße\n", `\`, "no UTF-8: \xff"}
		c := Config{Image: image, Init: guest, Args: append([]string{"self"}, args...), Env: map[string]string{"GREETING": ` "hello", world=1 `}, Dir: "/some where"}
		c.Files = []File{{Guest: "/some where/x"}}
		type start struct {
			Args   [][]byte
			Dir    string
			Env    map[string]string
			InPID1 bool
		}
		var got start
		var out bytes.Buffer
		c.Output = &out
		if exit, err := Run(t.Context(), c); exit != 7 || err != nil {
			t.Fatalf("exit code %d, error %v; want 7 and none", exit, err)
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		want := start{
			Args: asBytes(args), Dir: "/some where",
			Env: map[string]string{"GREETING": ` "hello", world=1 `, "KMODCTL_VM": "1"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the program was started otherwise (-want +got):\n%s", diff)
		}
	})
}

func TestFilesArrive(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.1")
	tree := t.TempDir()
	for name, mode := range map[string]os.FileMode{"deep/er/plain": 0o600, "tool": 0o755} {
		os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755)
		if err := os.WriteFile(filepath.Join(tree, name), []byte("content of "+name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", filepath.Join(tree, "dangling")); err != nil {
		t.Fatal(err)
	}
	big := sparse(t, 200) // more than a machine of 512 MiB would unpack
	got := run(t, Config{
		Image: image,
		Args:  []string{"look", "/tmp", "/tmp/data", "/tool", "/lib/tree/deep/er/plain", "/lib/tree/tool", "/lib/tree/dangling", "/bin/alias"},
		Files: []File{
			{Guest: "/tmp/data", Data: []byte("\x00one\n"), Mode: 0o640},
			{Guest: "/tool", Host: filepath.Join(tree, "tool")},
			{Guest: "/lib/tree", Host: tree},
			{Guest: "/big", Host: big},
			{Guest: "/bin/alias", Link: "../tool"},
		},
	})
	want := `/tmp dtrwxrwxrwx ""
/tmp/data -rw-r----- "\x00one\n"
/tool -rwxr-xr-x "content of tool"
/lib/tree/deep/er/plain -rw------- "content of deep/er/plain"
/lib/tree/tool -rwxr-xr-x "content of tool"
/lib/tree/dangling Lrwxrwxrwx "/nowhere"
/bin/alias Lrwxrwxrwx "../tool"
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// sparse is a file of that many MiB.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "sparse")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size<<20); err != nil {
		t.Fatal(err)
	}
	return name
}

// The kernel itself would go on with half of the files.
func TestFilesDoNotFit(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.1")
	e := fails(t, Config{Image: image, MemoryMB: 512, Files: []File{{Guest: "/big", Host: sparse(t, 200)}}, Args: []string{"exit", "0"}})
	if e.Reason != "pid 1 of the guest: the files do not fit into its memory" {
		t.Errorf("reason %q", e.Reason)
	}
}

func TestOutputArrivesWhole(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.1")
	chunk := make([]byte, 4096)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	if got := run(t, Config{Image: image, Args: []string{"flood"}}); got != string(bytes.Repeat(chunk, 256)) {
		t.Errorf("1 MiB was printed, %d other bytes arrived", len(got))
	}
}

// The guest is a system, with its mounts, scratch folders and an init that
// reaps, and its kernel takes a module of the distribution without any other.
func TestModuleIsInserted(t *testing.T) {
	onEach(t, func(t *testing.T, release, image string) {
		got := run(t, Config{Image: image, Args: []string{"insert", "/dummy.ko"}, Files: []File{{Guest: "/dummy.ko", Data: dummy(t, release)}}})
		if want := "live on " + release; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// dummy is the module drivers/net/dummy of an installed kernel.
func dummy(t *testing.T, release string) []byte {
	t.Helper()
	found, _ := filepath.Glob("/lib/modules/" + release + "/kernel/drivers/net/dummy.ko*")
	if len(found) != 1 {
		t.Fatalf("kernel %s has no drivers/net/dummy.ko: reinstall its linux-image package", release)
	}
	data, err := os.ReadFile(found[0])
	if err == nil && strings.HasSuffix(found[0], ".xz") {
		var r io.Reader
		if r, err = xz.NewReader(bytes.NewReader(data)); err == nil {
			data, err = io.ReadAll(r)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPanicOfTheKernel(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.12")
	e := fails(t, Config{Image: image, Args: []string{"panic"}})
	if e.Reason != "kernel panic: sysrq triggered crash" {
		t.Errorf("reason %q", e.Reason)
	}
	for _, want := range []string{"sysrq: Trigger a crash", "Call Trace"} {
		if !strings.Contains(e.Console, want) {
			t.Errorf("the console lacks %q: %s", want, e.Console)
		}
	}
	if want := "boot " + image + ": " + e.Reason; e.Error() != want {
		t.Errorf("error %q, want %q", e, want)
	}
}

func TestGuestWithoutAResult(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.1")
	for name, test := range map[string]struct {
		config Config
		reason string
	}{
		"killed program": {Config{Args: []string{"signal"}}, "the program was killed by signal 9 (killed)"},
		"reboot":         {Config{Args: []string{"reboot"}}, "the guest ended before its program did"},
		"no init":        {Config{Append: "rdinit=/none"}, "kernel panic: VFS: Unable to mount root fs on unknown-block(0,0)"},
		"bad folder":     {Config{Dir: "/none"}, "pid 1 of the guest: chdir /none: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.config.Image = image
			if e := fails(t, test.config); e.Reason != test.reason {
				t.Errorf("reason %q, want %q", e.Reason, test.reason)
			}
		})
	}
}

func TestReaderOfTheOutputGoesAway(t *testing.T) {
	t.Parallel()
	_, image := release(t, "6.1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	_, err = Run(t.Context(), Config{Image: image, Init: guest, Args: []string{"flood"}, Output: w})
	if err == nil || !strings.Contains(err.Error(), "pass on output: write |1: broken pipe") {
		t.Errorf("error %v", err)
	}
}
