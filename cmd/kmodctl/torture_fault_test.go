package main

import (
	"bytes"
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
	builds bool                          // on a machine where something can be built
	parts  [][]string                    // commands that do a part of it, after which it may end
	spoil  func(t testing.TB, m machine) // what else is done to the machine; may be nil
	holds  func(t testing.TB, m machine) // what must be true at every moment; may be nil
	damage func(t testing.TB, m machine) // what is done to its database then, so that nobody can read it; may be nil
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
	{name: "rebuild", before: withBoth, args: []string{"repair"}, broken: true, damage: func(t testing.TB, m machine) {
		f, err := os.OpenFile(filepath.Join(m.state(), "registry.db"), os.O_WRONLY, 0)
		check(t, err)
		defer f.Close()
		const page, installs = 4096, 11 // of SQLite; where the table install is
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, page), installs*page)
		check(t, err)
	}},
	{name: "lost", before: withBoth, args: []string{"repair"}, broken: true, damage: loseDatabase},
	{name: "log", before: withNet, args: []string{"repair"}, broken: true, damage: loseUpgrade},
	{name: "files", args: []string{"install", "led@1"}, spoil: func(t testing.TB, m machine) { m.ship(t, "1") }},
	{name: "files upgrade", args: []string{"install", "led@2"}, spoil: func(t testing.TB, m machine) {
		m.ship(t, "1")
		m.must(t, "install", "led@1")
		m.ship(t, "2")
	}},
	{name: "files go", args: []string{"uninstall", "led"}, spoil: func(t testing.TB, m machine) {
		m.ship(t, "1")
		m.must(t, "install", "led@1")
	}},
	{name: "files repair", args: []string{"repair"}, broken: true, spoil: func(t testing.TB, m machine) {
		m.ship(t, "1")
		m.must(t, "install", "led@1")
		check(t, os.Truncate(filepath.Join(m.root, "lib/firmware/updates/led.bin"), 1))
		check(t, os.Remove(filepath.Join(m.root, "etc/modprobe.d/led.conf")))
	}},
	{name: "files lost", args: []string{"repair"}, broken: true, spoil: func(t testing.TB, m machine) {
		m.ship(t, "1")
		m.must(t, "install", "led@1")
	}, damage: loseDatabase},
	{name: "build", builds: true, args: []string{"build", "@/hello"}, parts: [][]string{{"add", "@/hello"}}},
	{name: "build again", builds: true, before: [][]string{{"build", "@/hello"}}, args: []string{"build", "@/changed/hello"},
		parts: [][]string{{"add", "@/changed/hello"}}},
}

func loseDatabase(t testing.TB, m machine) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		check(t, os.RemoveAll(filepath.Join(m.state(), "registry.db"+suffix)))
	}
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
	all := newBases(t)
	program, err := oneThread()
	check(t, err)
	all.plain.program, all.real.program = program, program
	for i, s := range slices.Concat(scenarios, signedScenarios) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			newTrials(t, all, s).run(t, rand.New(rand.NewPCG(seed, uint64(i))))
		})
	}
}

// bases are the machines that the scenarios begin with.
type bases struct{ plain, real machine }

// newBases makes them, and beside them the folders of sources.
func newBases(t testing.TB) bases {
	t.Helper()
	m := newMachine(t)
	m.source(t, "extra", "2", "", "extra")
	check(t, os.MkdirAll(filepath.Join(m.aside, "changed"), 0o755))
	machine{aside: filepath.Join(m.aside, "changed")}.source(t, "net", "1.0", "changed", "libarc4", "dummy")
	return bases{m, m.realOne(t)}
}

// staged is a scenario whose command is about to be given.
type staged struct {
	scenario
	ready         machine // copied for each trial
	before, after facts
	states        []facts         // these two, and those in between
	known         map[string]bool // digests of modules, and of files beside them
}

// stage readies a scenario and gives its command undisturbed, once: these are the calls that
// it makes.
func (s scenario) stage(t testing.TB, all bases) (staged, []call) {
	t.Helper()
	base := all.plain
	if s.builds {
		base = all.real
	}
	st := staged{scenario: s, ready: base.copyOf(t)}
	for _, args := range s.before {
		st.ready.must(t, args...)
	}
	if s.spoil != nil {
		s.spoil(t, st.ready)
	}
	st.before = st.ready.facts(t)
	if s.damage != nil {
		s.damage(t, st.ready)
		if r := st.ready.run(t, []string{"verify"}); !strings.Contains(r.out, "registry.db") {
			t.Fatalf("verify does not see the damage: exit %d: %s%s", r.code, r.out, r.stderr)
		}
	}
	m := st.ready.copyOf(t)
	r, trace := m.trace(t, s.args, false, "-e", "trace="+strings.Join(injected, ","))
	if r.code != 0 {
		t.Fatalf("undisturbed: exit %d: %s", r.code, r.stderr)
	}
	if r.stderr == "" || strings.Contains(r.stderr, "nothing to do") {
		t.Fatalf("undisturbed, %v does nothing: %s", s.args, r.stderr)
	}
	st.after = m.facts(t)
	m.checkClean(t)
	st.states = []facts{st.before, st.after}
	for _, args := range s.parts {
		m := st.ready.copyOf(t)
		m.must(t, args...)
		st.states = append(st.states, m.facts(t))
	}
	st.known = st.before.digests()
	maps.Copy(st.known, st.after.digests())
	return st, trace
}

// checkAlways holds of a copy, whatever the command did to it, what can be held: nobody can read a
// damaged database, and where files are amiss these are.
func (s staged) checkAlways(t testing.TB, m machine) {
	t.Helper()
	if s.holds != nil {
		s.holds(t, m)
	}
	switch {
	case !s.broken:
		m.checkAlways(t, s.known)
	case s.damage != nil:
		m.checkFiles(t, s.known)
	}
}

// trials are those of one scenario.
type trials struct {
	staged
	calls  map[string]int // by kind of call: how many one thread makes undisturbed
	own    map[string]int // those of kmodctl, where depmod makes such calls too
	points map[string]bool

	mu    sync.Mutex
	hit   map[string]bool
	count int
}

func newTrials(t *testing.T, all bases, s scenario) *trials {
	t.Helper()
	st, trace := s.stage(t, all)
	tr := &trials{staged: st, calls: map[string]int{}, own: map[string]int{}, points: map[string]bool{}, hit: map[string]bool{}}
	shared := map[string]bool{}
	for _, c := range trace {
		tr.points[c.point] = true
		tr.calls[c.kind] = max(tr.calls[c.kind], c.n)
		if strings.HasPrefix(c.point, "kmodctl ") {
			tr.own[c.kind] = c.n
		} else {
			shared[c.kind] = true
		}
	}
	maps.DeleteFunc(tr.own, func(kind string, _ int) bool { return !shared[kind] })
	return tr
}

// trial is a fault at the n-th call of a kind: of each thread, or of kmodctl alone, since else it
// would never come to where depmod was hit before.
type trial struct {
	kind, fault string
	n           int
	alone       bool
}

// chosen are the trials: all at the full size, else one in a few, chosen by dice. A build
// takes its time: there, a call fails in one of two ways or, where most only read, every other call does.
func (tr *trials) chosen(dice *rand.Rand) (all []trial) {
	parity := dice.IntN(2)
	for _, kind := range slices.Sorted(maps.Keys(tr.calls)) {
		for i, fault := range faults {
			dies := fault == "signal=SIGKILL"
			switch {
			case kind == "waitid" && !dies: // it does not fail
				continue
			case kind == "openat" && fault != "error=EIO": // most of them only read
				continue
			}
			for _, n := range sample(dice, tr.calls[kind]) {
				if !tr.builds || dies || (n+parity)%2 == i {
					all = append(all, trial{kind, fault, n, false})
				}
			}
			if tr.own[kind] > 0 {
				for _, n := range sample(dice, tr.own[kind]) {
					all = append(all, trial{kind, fault, n, true})
				}
			}
		}
	}
	most := 30
	switch {
	case full:
		return all
	case tr.builds:
		most = 4
	case tr.damage != nil:
		most = 12
	}
	dice.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(len(all), most)]
}

// run makes the trials.
func (tr *trials) run(t *testing.T, dice *rand.Rand) {
	t.Helper()
	start := time.Now()
	var all sync.WaitGroup
	room := make(chan bool, runtime.NumCPU())
	for _, one := range tr.chosen(dice) {
		if t.Failed() && !full {
			break
		}
		room <- true
		all.Go(func() {
			defer func() { <-room }()
			tr.try(t, one)
		})
	}
	all.Wait()
	var missed []string
	for _, p := range sortedKeys(asText(tr.points)) {
		// A run of n ends at the n-th call of kmodctl, mostly: it is in "index" that
		// depmod's turn comes. Its calls of openat only read, or are followed by a write.
		opens := strings.Contains(p, " openat ")
		if !tr.hit[p] && (strings.HasPrefix(p, "kmodctl ") && !(opens && tr.builds) || tr.name == "index" && !opens) {
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

func (tr *trials) try(t *testing.T, one trial) {
	t.Helper()
	m := tr.ready.copyOf(t)
	defer m.remove(t)
	fault := fmt.Sprintf("%s:%s:when=%d", one.kind, one.fault, one.n)
	what := tr.name + " " + fault
	if one.alone {
		what += " (strace without -f)"
	}
	options := []string{"-e", "trace=execve," + one.kind, "-e", "inject=" + fault} // the first execve tells who is kmodctl
	if one.fault != "signal=SIGKILL" && m.headers == "" && !one.alone {            // which strace 6.1 forgets then
		options = append(options, "--seccomp-bpf")
	}
	r, trace := m.trace(t, tr.args, one.alone, options...)
	at := ""
	tr.mu.Lock()
	tr.count++
	for _, c := range trace {
		if c.kind == one.kind && c.n == one.n {
			tr.hit[c.point] = true
			at += " " + c.point
		}
	}
	tr.mu.Unlock()
	bad := &failures{TB: t, what: what + " at" + at, said: r}
	tr.checkAlways(bad, m)
	// Go's runtime cannot go on without its own descriptors.
	if strings.Contains(r.stderr, "goroutine ") && !strings.Contains(at, "anon_inode") {
		bad.Errorf("it crashed")
	}
	if r.code == 0 {
		if now := m.facts(bad); !now.among(tr.after) {
			bad.Errorf("it said yes, but is\n%v", now)
		}
	}
	if repaired := m.run(bad, []string{"repair"}); repaired.code != 0 {
		bad.Errorf("repair: exit %d: %s", repaired.code, repaired.stderr)
	}
	m.checkClean(bad)
	now := m.facts(bad)
	if !now.among(tr.states...) {
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

// trace runs a command below strace and returns the calls that it made; alone, those of kmodctl's
// main thread. So it is where something can be built: kbuild has hundreds of processes, none
// of which strace slows down then, and depmod has its turn in the other scenarios.
func (m machine) trace(t testing.TB, args []string, alone bool, options ...string) (result, []call) {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "log")
	follow := []string{"-f"}
	if alone || m.headers != "" {
		follow = nil
	}
	r := m.run(t, args, slices.Concat([]string{"strace"}, follow, []string{"-qq", "-y", "-s", "4096", "-e", "signal=none", "-o", log}, options)...)
	text, err := os.ReadFile(log)
	check(t, err)
	var calls []call
	main, first := "", true
	count := map[string]int{}
	for line := range strings.Lines(string(text)) {
		thread, rest := "", line
		if follow != nil {
			thread, rest, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		kind, rest, ok := strings.Cut(strings.TrimSpace(rest), "(")
		if !ok || !slices.Contains(injected, kind) {
			continue
		}
		if first {
			main, first = thread, false
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
	varying = regexp.MustCompile(`[0-9a-f]{64}|/proc/[0-9]+|\.tmp-[A-Z2-7]+|-[A-Z2-7]{8}\b(/source .*)?|\.[0-9]+\.[0-9]+\.[0-9]+\b|kmodctl-registry-[0-9]+|damaged-[0-9TZ.]+`)
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
