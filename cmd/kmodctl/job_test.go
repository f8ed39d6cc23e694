package main

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// TestMainJob is the issue that began kmodctl: six examples, two kernels of
// different series; and nothing to do the second time.
func TestMainJob(t *testing.T) {
	rels := releases(t)
	root := newRoot(t, rels...)
	dir, paths := examplePaths(t)

	r := must(t, append([]string{"--root", root, "build"}, paths...)...)
	if n := strings.Count(r.stderr, "built "); n != 12 {
		t.Fatalf("%d builds, want 12:\n%s", n, r.stderr)
	}
	if n := strings.Count(r.stderr, "installed "); n != 12 {
		t.Errorf("%d installs, want 12:\n%s", n, r.stderr)
	}
	checkInstalled(t, root, rels, exampleDirs)

	t.Run("json", func(t *testing.T) {
		for _, args := range [][]string{
			{"kernels"}, {"status"}, {"info", "stack", "-k", rels[0]}, {"info", "params", "-k", rels[0]}, {"build", "--dry-run"},
			{"add", filepath.Join(dir, "hello")}, {"log", "hello"}, {"version"}, {"uninstall", "hello"}, {"install", "hello"},
			{"build", "hello"},
		} {
			checkDocumented(t, must(t, append([]string{"--root", root, "--json"}, args...)...).out)
		}
	})

	t.Run("nothing to do", func(t *testing.T) { nothingToDo(t, root, len(series)) })

	t.Run("one byte changed", func(t *testing.T) {
		changeByte(t, filepath.Join(dir, "hello", "hello.c"))
		for _, p := range statusOf(t, "--root", root).Packages {
			if changed := slices.Equal(p.OriginChanged, []string{"hello.c"}); changed != (p.Name == "hello") {
				t.Errorf("status says %v of %s changed", p.OriginChanged, p.Name)
			}
		}
		text := must(t, "--root", root, "status").out
		if !strings.Contains(text, "changed since add: hello.c") {
			t.Errorf("status does not name the file:\n%s", text)
		}
		r := must(t, "--root", root, "build", filepath.Join(dir, "hello"))
		if n := strings.Count(r.stderr, "built hello"); n != 2 || strings.Count(r.stderr, "built ") != 2 {
			t.Errorf("want hello alone built, for two kernels:\n%s", r.stderr)
		}
		checkInstalled(t, root, rels, exampleDirs)
	})

	t.Run("another build", func(t *testing.T) { // which the guests install: they have no compiler
		file := filepath.Join(dir, "hello", "hello.c")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Dir(file), "hello.c", strings.Replace(string(text), "module loaded", "another build loaded", 1))
		must(t, "--root", root, "build", "--no-install", filepath.Join(dir, "hello"))
	})

	t.Run("real kernels", func(t *testing.T) { onRealKernels(t, root, rels) })

	t.Run("remove", func(t *testing.T) {
		for name := range exampleDirs {
			checkDocumented(t, must(t, "--root", root, "remove", name, "--json").out)
			must(t, "--root", root, "history", name)
			says(t, must(t, "--root", root, "remove", "--purge", name, "--dry-run").out, "forget the history of "+name)
			says(t, must(t, "--root", root, "remove", "--purge", name).stderr, "forgot the history of "+name)
			if r := kmodctl(t, "--root", root, "history", name); r.code != exitNotFound {
				t.Errorf("history %s after remove --purge: exit %d\n%s", name, r.code, r.out)
			}
		}
		checkInstalled(t, root, rels, nil)
		if left, _ := filepath.Glob(root + "/lib/modules/*/updates"); len(left) > 0 {
			t.Errorf("remove left %v", left)
		}
	})
}

// Thirty packages and eight kernels: of the sources and of what is large in the build trees nothing is opened.
func TestNothingToDoForMany(t *testing.T) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	root := newStore(t, 30, 8)
	learn(t, path, root)
	trace := nothingToDo(t, root, 8, "--no-install")
	for _, name := range []string{filepath.Join(root, "src/"), "Module.symvers"} {
		if i := strings.Index(trace, name); i >= 0 {
			t.Errorf("looked into %.120s", trace[i:])
		}
	}
}

// nothingToDo traces a build that has nothing to do: it starts no process, and
// opens files in proportion to kernels, not to packages or headers.
func nothingToDo(t *testing.T, root string, kernels int, flags ...string) (trace string) {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "trace")
	r := command(t, exec.Command("strace", append([]string{"-f", "-o", file, "-e", "trace=execve,clone,clone3,fork,vfork,openat,open,openat2,fsync,fdatasync",
		path, "--root", root, "build"}, flags...)...))
	if r.code != 0 || !strings.Contains(r.stderr, "nothing to do") {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var execs, processes, opened, synced int
	for _, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.Contains(line, "execve("):
			execs++
		case strings.Contains(line, "clone") && !strings.Contains(line, "CLONE_THREAD") && !strings.Contains(line, "resumed"), strings.Contains(line, "fork("):
			processes++
		case strings.Contains(line, "sync("):
			synced++
		case strings.Contains(line, "open") && !strings.Contains(line, "resumed"):
			opened++
		}
	}
	t.Logf("a build with nothing to do: %d files opened, %d fsyncs", opened, synced)
	if execs != 1 || processes != 0 || synced != 0 {
		t.Errorf("started %d processes and %d programs, %d fsyncs; want none\n%s", processes, execs-1, synced, text)
	}
	if limit := 105 + 30*kernels; opened > limit { // sixty for the configuration, the keys, and what packages of DKMS depend on
		t.Errorf("opened %d files, want at most %d for %d kernels\n%s", opened, limit, kernels, text)
	}
	return string(text)
}

// changeByte flips one letter of a comment: the file stays valid C.
func changeByte(t testing.TB, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(text), "* ") + 2
	if text[i] == 'x' {
		text[i] = 'y'
	} else {
		text[i] = 'x'
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkInstalled holds status, /lib/modules, modules.dep and what must be
// installed (modules by package) against each other, for every release.
func checkInstalled(t testing.TB, root string, rels []string, want map[string][]string) {
	t.Helper()
	status := statusOf(t, "--root", root)
	if len(status.Unfinished) > 0 || len(status.Foreign) > 0 {
		t.Errorf("status: unfinished %v, foreign %v", status.Unfinished, status.Foreign)
	}
	for _, release := range rels {
		rows := map[string]string{} // path in the root: digest
		for _, p := range status.Packages {
			for _, k := range p.Kernels {
				if k.Release != release {
					continue
				}
				if _, ok := want[p.Name]; ok && k.State != stateInstalled {
					t.Errorf("%s for %s is %s: %s", p.Name, release, k.State, k.Why)
				}
				for _, m := range k.Modules {
					if m.Path != "" {
						rows[m.Path] = m.Digest
					}
				}
			}
		}
		var modules []string
		for _, names := range want {
			modules = append(modules, names...)
		}
		if len(rows) != len(modules) {
			t.Errorf("%s: status has %d modules installed, want %v", release, len(rows), modules)
		}
		files := installedFiles(t, root, release)
		if len(files) != len(rows) {
			t.Errorf("%s: %d files in updates/kmodctl, %d rows: %v", release, len(files), len(rows), files)
		}
		for path, digest := range rows {
			file, _ := os.ReadFile(filepath.Join(root, path))
			plain, _, err := ko.Decompress(file) // it is installed as the kernel's own are
			if sum := sha256.Sum256(plain); err != nil || hex.EncodeToString(sum[:]) != digest {
				t.Errorf("%s: sha256 %x unpacked, status says %s (%v)", path, sum, digest, err)
			}
		}
		if indexed := indexedFiles(t, root, release); !slices.Equal(indexed, sortedKeys(files)) {
			t.Errorf("%s: modules.dep names %v, installed are %v", release, indexed, sortedKeys(files))
		}
	}
}

func sortedKeys(m map[string]string) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// installedFiles is every file below updates of a release, with its digest.
func installedFiles(t testing.TB, root, release string) map[string]string {
	t.Helper()
	out := map[string]string{}
	found, _ := filepath.Glob(filepath.Join(root, "lib/modules", release, "updates/kmodctl/*"))
	hidden, _ := filepath.Glob(filepath.Join(root, "lib/modules", release, "updates/kmodctl/.*"))
	for _, path := range append(found, hidden...) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(text)
		out["/"+strings.TrimPrefix(path, root+"/")] = hex.EncodeToString(sum[:])
	}
	return out
}

// indexedFiles is what modules.dep names below updates.
func indexedFiles(t testing.TB, root, release string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "lib/modules", release, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if path, _, _ := strings.Cut(line, ":"); strings.HasPrefix(path, "updates/") {
			out = append(out, "/lib/modules/"+release+"/"+path)
		}
	}
	slices.Sort(out)
	return out
}

// TestKill kills a build and its install at random moments. After the next
// command that may write, the machine is as status says.
func TestKill(t *testing.T) {
	rels := releases(t)[:1]
	root := newRoot(t, rels...)
	dir, _ := examplePaths(t)
	stack := filepath.Join(dir, "stack")
	want := map[string][]string{"stack": exampleDirs["stack"]}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	must(t, "--root", root, "build", stack, "-k", rels[0])
	checkInstalled(t, root, rels, want)
	timed := func(args ...string) time.Duration {
		start := time.Now()
		must(t, append([]string{"--root", root}, args...)...)
		return time.Since(start)
	}
	changeByte(t, filepath.Join(stack, "stack_user.c"))
	whole := timed("build", stack, "-k", rels[0])
	uninstall, install := timed("uninstall", "stack"), timed("install", "stack")

	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d; uncut, build takes %v, uninstall %v, install %v", seed, whole, uninstall, install)
	random := rand.New(rand.NewPCG(seed, 0))
	killed := 0
	for i := 0; killed < rounds; i++ {
		if i == 10*rounds {
			t.Fatalf("only %d of %d were killed in time", killed, i)
		}
		args, length := []string{"build", stack, "-k", rels[0]}, whole
		switch i % 4 {
		case 1:
			args, length = []string{"uninstall", "stack"}, uninstall
		case 3:
			must(t, "--root", root, "uninstall", "stack")
			args, length = []string{"install", "stack"}, install
		default:
			changeByte(t, filepath.Join(stack, "stack_user.c"))
		}
		cmd := exec.Command(path, append([]string{"--root", root}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The moment is random, not a wait for something to be ready.
		after := time.Duration(random.Int64N(int64(length)))
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		if cmd.Wait() != nil {
			killed++
		}
		timer.Stop()
		if r := kmodctl(t, "--root", root, "install", "stack"); r.code != 0 {
			t.Fatalf("round %d, %s killed after %v: install: exit %d: %s", i, args[0], after, r.code, r.stderr)
		}
		checkKilled(t, root, rels, want)
		if t.Failed() {
			t.Fatalf("round %d, %s killed after %v", i, args[0], after)
		}
	}
}

// checkKilled is checkInstalled for a machine on which a kmodctl was killed: the
// artifact may be older than the source, and nothing else may be left.
func checkKilled(t testing.TB, root string, rels []string, want map[string][]string) {
	t.Helper()
	state := filepath.Join(root, "var/lib/kmodctl")
	reg, err := registry.Open(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	attempts, err := reg.Attempts("stack", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attempts {
		if a.Outcome == "" {
			t.Errorf("half-written: %s of %s, begun %v, has no outcome", a.Op, a.Package, a.Started)
		}
	}
	files := map[string]string{}
	installs, err := reg.Installs()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range installs {
		files[i.Path] = i.Digest
	}
	for _, release := range rels {
		onDisk := installedFiles(t, root, release)
		if len(onDisk) != len(want["stack"]) {
			t.Errorf("installed are %v", onDisk)
		}
		for path, digest := range onDisk {
			if files[path] != digest {
				t.Errorf("%s: sha256 %s, the row says %s", path, digest, files[path])
			}
		}
		if indexed := indexedFiles(t, root, release); !slices.Equal(indexed, sortedKeys(onDisk)) {
			t.Errorf("modules.dep names %v, installed are %v", indexed, onDisk)
		}
		if left, _ := filepath.Glob(filepath.Join(root, "lib/modules", release, "modules.*.[0-9]*")); len(left) > 0 {
			t.Errorf("depmod's temporary files are left: %v", left)
		}
	}
	for _, p := range statusOf(t, "--root", root).Packages {
		for _, k := range p.Kernels {
			if k.State == stateDamaged || k.State == stateFailed {
				t.Errorf("status: %s for %s is %s: %s", p.Name, k.Release, k.State, k.Why)
			}
		}
	}
	if left, _ := os.ReadDir(filepath.Join(state, "work")); len(left) > 0 {
		t.Errorf("work folders are left: %v", left)
	}
	if left := temporary(t, state); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	if left := processesOf(state); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

var blobName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// temporary is every file below the registry's blobs that is no blob.
func temporary(t testing.TB, state string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(state, "blobs"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !blobName.MatchString(d.Name()) {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// processesOf are the command lines of processes that a build below state started.
func processesOf(state string) (out []string) {
	found, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range found {
		env, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(env), "KMODCTL_WORK="+state) {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
			out = append(out, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return out
}

// TestInterrupt sends SIGINT, and SIGTERM, in the middle of a build whose Makefile never ends.
func TestInterrupt(t *testing.T) {
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: exitInterrupted, syscall.SIGTERM: exitTerminated} {
		t.Run(sig.String(), func(t *testing.T) { testInterrupt(t, sig, code) })
	}
}

func testInterrupt(t *testing.T, sig syscall.Signal, want int) {
	rels := releases(t)[:1]
	root := newRoot(t, rels...)
	src := t.TempDir()
	write(t, src, "kmod.toml", "name = \"slow\"\nversion = \"1\"\n\n[[module]]\nname = \"slow\"\n")
	write(t, src, "Kbuild", "obj-m := slow.o\n$(shell sleep 600)\n")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--root", root, "build", src, "-k", rels[0])
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(root, "var/lib/kmodctl")
	deadline := time.Now().Add(time.Minute)
	for !slices.ContainsFunc(processesOf(state), func(c string) bool { return strings.HasPrefix(c, "sleep") }) {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatal("the build did not get to its sleep within a minute")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cmd.Process.Signal(sig)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != want {
		t.Errorf("exit %d, want %d", code, want)
	}
	if left := processesOf(state); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(state, "work")); len(left) > 0 {
		t.Errorf("work folders are left: %v", left)
	}
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return text
}
