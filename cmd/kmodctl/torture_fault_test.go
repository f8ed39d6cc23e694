package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// oneThread is the real program, built so that its main goroutine stays on the main
// thread: strace counts calls thread by thread, and only so its n-th is the n-th.
var oneThread = sync.OnceValues(func() (string, error) {
	path, err := binary()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	source, overlay := filepath.Join(dir, "thread.go"), filepath.Join(dir, "overlay.json")
	text := "package main\n\nimport \"runtime\"\n\nfunc init() { runtime.LockOSThread() }\n"
	here, err := filepath.Abs("thread.go")
	if err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {here: source}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		return "", err
	}
	if err := os.WriteFile(overlay, replace, 0o644); err != nil {
		return "", err
	}
	out := filepath.Join(dir, "kmodctl-one-thread")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-tags", "urfave_cli_no_docs", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, said)
	}
	return out, nil
})

// scenario is a command and the machine that it meets.
type scenario struct {
	name   string
	before [][]string // commands
	args   []string
	once   bool                          // given again, it does more or refuses
	broken bool                          // what it is to mend is amiss before it
	spoil  func(t testing.TB, m machine) // what else is done to the machine; may be nil
}

var (
	withDisk = [][]string{{"install", "disk"}}
	withNet  = append(slices.Clone(withDisk), []string{"install", "net@1.0"})
	withBoth = append(slices.Clone(withNet), []string{"install", "net@1.1"})
	moved    = append(slices.Clone(withNet), []string{"export", "net@1.0", "-o", "@/net.tar"}, []string{"remove", "net@1.0"})
)

var scenarios = []scenario{
	{name: "create", args: []string{"add", "@/net-1.0"}, spoil: func(t testing.TB, m machine) { check(t, os.RemoveAll(m.state())) }},
	{name: "add", before: withDisk, args: []string{"add", "@/extra-2"}},
	{name: "add again", before: withNet, args: []string{"add", "@/changed/net-1.0"}},
	{name: "install", before: withDisk, args: []string{"install", "net@1.0"}},
	{name: "upgrade", before: withNet, args: []string{"install", "net@1.1"}},
	{name: "rollback", before: withBoth, args: []string{"rollback", "net"}, once: true},
	{name: "uninstall", before: withNet, args: []string{"uninstall", "net"}},
	{name: "remove", before: withNet, args: []string{"remove", "net"}, once: true},
	{name: "remove one", before: withNet, args: []string{"remove", "net@1.0"}, once: true},
	{name: "import", before: moved, args: []string{"import", "@/net.tar"}},
	{name: "gc", before: withNet, args: []string{"gc"}, spoil: func(t testing.TB, m machine) {
		m.fill(t, "net", "1.1", "newer", "dummy", "cordic") // than what was never installed
	}},
	{name: "index", before: withNet, args: []string{"install", "net@1.0"}, broken: true, spoil: func(t testing.TB, m machine) {
		for _, release := range tortured { // nothing but depmod has work
			check(t, os.Remove(filepath.Join(m.root, "lib/modules", release, "modules.dep")))
		}
	}},
	{name: "repair", before: withNet, args: []string{"repair"}, broken: true, spoil: func(t testing.TB, m machine) {
		for _, release := range tortured {
			check(t, os.Truncate(filepath.Join(m.root, "lib/modules", release, "updates/kmodctl/crc8.ko"), 100))
			check(t, os.Remove(filepath.Join(m.root, "lib/modules", release, "updates/kmodctl/dummy.ko")))
		}
		installed := sums(t, filepath.Join(m.root, "lib/modules", tortured[1], "updates/kmodctl"))
		check(t, os.Remove(filepath.Join(m.state(), "blobs/sha256", installed["libarc4.ko"])))
	}},
}

// faults are what is done at a call, as strace's -e inject says it.
var faults = []string{"error=EIO", "error=ENOSPC", "signal=SIGKILL"}

// injected are the calls that change files, or start and await depmod. fchmodat2 is
// not among them, for Debian's strace (6.1) does not know it.
var injected = []string{
	"write", "pwrite64", "copy_file_range", "ftruncate", "fallocate", "fsync", "fdatasync", "openat", "mkdirat", "linkat",
	"renameat", "renameat2", "unlinkat", "rmdir", "unlink", "rename", "mkdir", "fchmod", "fchmodat", "utimensat", "symlinkat",
	"execve", "waitid",
}

// TestTortureFaults makes the n-th call of each kind fail, or kmodctl or its depmod
// die there, for each n: no sooner or later than at a call can a disk fail, or a
// killed process leave something.
//
// At once, without any repair: what is installed is whole, the kernel's own files are
// untouched, and users can read. After one command that may write: the state is the one
// before the command or the one after, kernel by kernel; nothing that was installed
// is lost; nothing temporary is left; files, index and rows agree. And the
// command, given again, succeeds.
func TestTortureFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	base := newTortureBase(t)
	var err error
	base.program, err = oneThread()
	check(t, err)
	for i, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			newTrials(t, base, s).run(t, rand.New(rand.NewPCG(seed, uint64(i))))
		})
	}
}

// newTortureBase is the machine, and beside it the folders, that the scenarios begin with.
func newTortureBase(t testing.TB) machine {
	t.Helper()
	m := newMachine(t)
	m.source(t, "extra", "2", "", "extra")
	check(t, os.MkdirAll(filepath.Join(m.aside, "changed"), 0o755))
	machine{aside: filepath.Join(m.aside, "changed")}.source(t, "net", "1.0", "changed", "libarc4", "dummy")
	return m
}

// trials are those of one scenario.
type trials struct {
	scenario
	ready         machine // copied for each trial
	before, after facts
	known         map[string]bool
	calls         map[string]int // by kind of call: how many one thread makes undisturbed
	points        map[string]bool

	mu    sync.Mutex
	hit   map[string]bool
	count int
}

func newTrials(t *testing.T, base machine, s scenario) *trials {
	t.Helper()
	tr := &trials{scenario: s, ready: base.copyOf(t), hit: map[string]bool{}}
	for _, args := range s.before {
		tr.ready.must(t, args...)
	}
	if s.spoil != nil {
		s.spoil(t, tr.ready)
	}
	tr.before = tr.ready.facts(t)
	m := tr.ready.copyOf(t)
	r, trace := m.trace(t, s.args, "-e", "trace="+strings.Join(injected, ","))
	if r.code != 0 {
		t.Fatalf("undisturbed: exit %d: %s", r.code, r.stderr)
	}
	tr.after = m.facts(t)
	m.checkClean(t)
	tr.known = tr.before.digests()
	maps.Copy(tr.known, tr.after.digests())
	if r.stderr == "" || strings.Contains(r.stderr, "nothing to do") {
		t.Fatalf("undisturbed, %v does nothing: %s", s.args, r.stderr)
	}
	tr.calls, tr.points = map[string]int{}, map[string]bool{}
	for _, c := range trace {
		tr.points[c.point] = true
		tr.calls[c.kind] = max(tr.calls[c.kind], c.n)
	}
	return tr
}

// run tries every call at the full size, else one in a few, chosen by dice.
func (tr *trials) run(t *testing.T, dice *rand.Rand) {
	t.Helper()
	start := time.Now()
	var all sync.WaitGroup
	room := make(chan bool, runtime.NumCPU())
	for _, kind := range slices.Sorted(maps.Keys(tr.calls)) {
		for _, fault := range faults {
			switch dies := fault == "signal=SIGKILL"; {
			case kind == "waitid" && !dies: // it does not fail
				continue
			case kind == "openat" && fault != "error=EIO": // most of them only read
				continue
			}
			for _, n := range sample(dice, tr.calls[kind]) {
				room <- true
				all.Go(func() {
					defer func() { <-room }()
					tr.try(t, kind, fault, n)
				})
				if t.Failed() && !full {
					all.Wait()
					return
				}
			}
		}
	}
	all.Wait()
	var missed []string
	for _, p := range sortedKeys(asText(tr.points)) {
		// A run of n ends at the n-th call of kmodctl, mostly: it is in "index" that
		// depmod's turn comes. Its calls of openat only read, or are followed by a write.
		if !tr.hit[p] && (strings.HasPrefix(p, "kmodctl ") || tr.name == "index" && !strings.Contains(p, " openat ")) {
			missed = append(missed, p)
		}
	}
	t.Logf("%d trials in %.0f s: %d of the %d calls that a run makes, by file", tr.count, time.Since(start).Seconds(), len(tr.hit), len(tr.points))
	if full && len(missed) > 0 {
		t.Errorf("no trial hit:\n%s", strings.Join(missed, "\n"))
	}
}

func asText(set map[string]bool) map[string]string {
	out := map[string]string{}
	for k := range set {
		out[k] = k
	}
	return out
}

// sample is every number from 1 to n at the full size, else one in stride.
func sample(dice *rand.Rand, n int) (out []int) {
	stride := 40
	if full {
		stride = 1
	}
	for i := 1 + dice.IntN(min(n, stride)); i <= n; i += stride {
		out = append(out, i)
	}
	return out
}

// try is one trial.
func (tr *trials) try(t *testing.T, kind, fault string, n int) {
	t.Helper()
	m := tr.ready.copyOf(t)
	defer os.RemoveAll(m.root)
	what := fmt.Sprintf("%s %s:%s:when=%d", tr.name, kind, fault, n)
	options := []string{"-e", "trace=" + kind, "-e", fmt.Sprintf("inject=%s:%s:when=%d", kind, fault, n)}
	if fault != "signal=SIGKILL" { // which strace 6.1 forgets then
		options = append(options, "--seccomp-bpf")
	}
	r, trace := m.trace(t, tr.args, options...)
	at := ""
	tr.mu.Lock()
	tr.count++
	for _, c := range trace {
		if c.n == n {
			tr.hit[c.point] = true
			at += " " + c.point
		}
	}
	tr.mu.Unlock()
	bad := &failures{TB: t, what: what + " at" + at, said: r}
	if !tr.broken {
		m.checkAlways(bad, tr.known)
	}
	// Go's runtime cannot go on without its own descriptors.
	if strings.Contains(r.stderr, "goroutine ") && !strings.Contains(at, "anon_inode") {
		bad.Errorf("it crashed")
	}
	now := m.facts(bad)
	if r.code == 0 && !now.among(tr.after) {
		bad.Errorf("it said yes, but is\n%v", now)
	}
	if repaired := m.run(bad, []string{"repair"}); repaired.code != 0 {
		bad.Errorf("repair: exit %d: %s", repaired.code, repaired.stderr)
	}
	m.checkClean(bad)
	now = m.facts(bad)
	if !now.among(tr.before, tr.after) {
		bad.Errorf("a state that never was:\n%v\nbefore:\n%v\nafter:\n%v", now, tr.before, tr.after)
	}
	if tr.once && !now.among(tr.before) {
		return
	}
	if again := m.run(bad, tr.args); again.code != 0 {
		bad.Errorf("given again: exit %d: %s", again.code, again.stderr)
	}
	if now = m.facts(bad); !now.among(tr.after) {
		bad.Errorf("given again, it left\n%v", now)
	}
	m.checkClean(bad)
}

// failures says of each failure in which trial it was.
type failures struct {
	testing.TB
	what string
	said result
}

func (f *failures) Errorf(format string, args ...any) {
	f.TB.Helper()
	f.TB.Errorf("%s: %s\nexit %d: %s", f.what, fmt.Sprintf(format, args...), f.said.code, f.said.stderr)
}

func (f *failures) Fatalf(format string, args ...any) {
	f.TB.Helper()
	f.Errorf(format, args...)
	runtime.Goexit() // of the trial
}

func (f *failures) Fatal(args ...any) {
	f.TB.Helper()
	f.Fatalf("%s", fmt.Sprint(args...))
}

// call is one line of a trace.
type call struct {
	kind  string // pwrite64
	n     int    // the how manieth of its kind in its thread
	point string // program, kind and files, without what differs from run to run
}

// trace runs a command below strace and returns the calls that it made.
func (m machine) trace(t testing.TB, args []string, options ...string) (result, []call) {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "log")
	r := m.run(t, args, append([]string{"strace", "-f", "-qq", "-y", "-s", "4096", "-e", "signal=none", "-o", log}, options...)...)
	text, err := os.ReadFile(log)
	check(t, err)
	var calls []call
	main := ""
	count := map[string]int{}
	for line := range strings.Lines(string(text)) {
		thread, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		kind, rest, ok := strings.Cut(strings.TrimSpace(rest), "(")
		if !ok || !slices.Contains(injected, kind) {
			continue
		}
		if main == "" {
			main = thread
		}
		count[thread+kind]++
		program := "depmod"
		if thread == main {
			program = "kmodctl"
		}
		calls = append(calls, call{kind, count[thread+kind], program + " " + kind + " " + m.files(outcome.ReplaceAllString(rest, ""))})
	}
	return r, calls
}

var (
	outcome = regexp.MustCompile(`\)\s+= (-?[0-9]|\?).*$`)
	inFiles = regexp.MustCompile(`<(/[^>]*|anon_inode:[^>]*|pipe:)|"([^"]*)"`)
	varying = regexp.MustCompile(`[0-9a-f]{64}|/proc/[0-9]+|\.tmp-[A-Z2-7]+|new-[A-Z2-7]+|\.[0-9]+\.[0-9]+\.[0-9]+\b|kmodctl-registry-[0-9]+`)
)

// files are the names in the arguments of a call; its data is left out.
func (m machine) files(args string) string {
	var names []string
	for _, found := range inFiles.FindAllStringSubmatch(args, -1) {
		name := found[1] + found[2]
		if strings.Contains(name, `\`) || len(names) == 4 {
			break
		}
		names = append(names, name)
	}
	text := strings.ReplaceAll(strings.Join(names, " "), m.root, "")
	return varying.ReplaceAllString(strings.ReplaceAll(text, m.aside, "@"), "*")
}
