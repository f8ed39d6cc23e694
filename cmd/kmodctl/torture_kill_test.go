package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kmodctl/registry"
)

// worker runs command after command on a package of its own, which has the versions 1.0
// and 1.1, and so knows what must be true of it whatever others do meanwhile.
type worker struct {
	machine
	t       testing.TB
	dice    *rand.Rand
	pkg     string
	options []string
	known   map[string]bool
}

// workers are n of them, each with a package of one module. A bystander, disk, is
// installed and nobody's.
func workers(t *testing.T, m machine, n int, options ...string) (all []*worker) {
	t.Helper()
	modules := []string{"crc7", "crc16", "ts_kmp", "ts_bm", "ts_fsm", "crc64", "libarc4", "cordic"}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	m.must(t, "remove", "net")
	m.must(t, "install", "disk")
	for i := range n {
		pkg := fmt.Sprintf("own%d", i)
		for _, version := range []string{"1.0", "1.1"} {
			m.fill(t, pkg, version, "", modules[i])
			m.must(t, "export", pkg+"@"+version, "-o", "@/"+pkg+version+".tar")
		}
		all = append(all, &worker{machine: m, t: t, dice: rand.New(rand.NewPCG(seed, uint64(i))), pkg: pkg, options: options})
	}
	known := m.facts(t).digests()
	for _, w := range all {
		w.known = known
	}
	return all
}

// operation is one command and what it makes of the installed version (for each kernel)
// and of the registered versions.
type operation struct {
	args      []string
	installed func(before string) string
	source    func(version, before string) string
}

func same(before string) string              { return before }
func sameSource(_ string, now string) string { return now }

// next chooses an operation.
func (w *worker) next() operation {
	v := []string{"1.0", "1.1"}[w.dice.IntN(2)]
	ref := w.pkg + "@" + v
	switch w.dice.IntN(12) {
	case 0, 1, 2, 3:
		return operation{[]string{"install", ref}, func(string) string { return v }, sameSource}
	case 4, 5:
		return operation{[]string{"uninstall", w.pkg}, func(string) string { return "" }, sameSource}
	case 6:
		return operation{[]string{"remove", ref}, func(before string) string {
			if before == v {
				return ""
			}
			return before
		}, func(version, before string) string {
			if version == v {
				return ""
			}
			return before
		}}
	case 7, 8:
		return operation{[]string{"import", "@/" + w.pkg + v + ".tar"}, same, func(version, before string) string {
			if version == v {
				return "registered"
			}
			return before
		}}
	case 9:
		return operation{[]string{"gc", "--grace", "0s"}, same, sameSource}
	case 10:
		return operation{[]string{"add", "@/" + w.pkg + "-" + v}, same, func(version, before string) string {
			if version == v {
				return "registered"
			}
			return before
		}}
	}
	return operation{[]string{"rollback", w.pkg}, func(before string) string {
		return map[string]string{"1.0": "1.1", "1.1": "1.0"}[before]
	}, sameSource}
}

// owned is what is true of the worker's package: by kernel the installed version, by version
// whether it is registered.
func (w *worker) owned() map[string]string {
	w.t.Helper()
	reg, err := registry.Open(w.t.Context(), w.state())
	check(w.t, err)
	defer reg.Close()
	installs, err := reg.Installs()
	check(w.t, err)
	sources, err := reg.Sources()
	check(w.t, err)
	out := map[string]string{}
	for _, i := range installs {
		if i.Package == w.pkg {
			out[i.Release] = i.Version
		}
	}
	for _, s := range sources {
		if s.Name == w.pkg {
			out[s.Version] = "registered"
		}
	}
	return out
}

// step runs one command, kills it after that time when it is not 0, and checks what it left.
func (w *worker) step(after time.Duration) (killed bool) {
	w.t.Helper()
	unpin := w.machine.run(w.t, slices.Concat(w.options, []string{"unpin", w.pkg})) // rollback pins, and install minds that
	if unpin.code != 0 && unpin.code != exitNotFound {
		w.t.Errorf("unpin: exit %d: %s", unpin.code, unpin.stderr)
	}
	op, before := w.next(), w.owned()
	args := slices.Concat(w.options, op.args)
	r := w.runFor(args, after)
	killed = r.code == -1
	if killed {
		w.checkAlways(w.t, w.known)
		w.must(w.t, slices.Concat(w.options, []string{"repair"})...)
	}
	now := w.owned()
	// After a kill one kernel may have less of a past to go back to than the other.
	refused := r.code == exitNotFound || (r.code == exitFailed || r.code == exitPartly) && (strings.Contains(r.stderr, "roll back") || strings.Contains(r.stderr, "not built"))
	for _, key := range slices.Concat(tortured, []string{"1.0", "1.1"}) {
		want := op.source(key, before[key])
		if slices.Contains(tortured, key) {
			want = op.installed(before[key])
		}
		undone := killed || refused
		if now[key] != want && !(undone && now[key] == before[key]) {
			w.t.Errorf("%v: %s is %q, was %q and should be %q; killed %v after %v, exit %d: %s", args, key, now[key], before[key], want, killed, after, r.code, r.stderr)
		}
	}
	if !killed && !refused && r.code != 0 {
		w.t.Errorf("%v: exit %d: %s", args, r.code, r.stderr)
	}
	return killed
}

// runFor runs a command and kills it after that time, when it is not 0.
func (w *worker) runFor(args []string, after time.Duration) result {
	w.t.Helper()
	cmd := w.command(args)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	check(w.t, cmd.Start())
	if after > 0 { // a random moment, not a wait for something
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	cmd.Wait()
	return result{code: cmd.ProcessState.ExitCode(), stderr: stderr.String()}
}

// checkBystander holds that what nobody touched is as it was.
func (m machine) checkBystander(t testing.TB) {
	t.Helper()
	for _, release := range tortured {
		if files := installedFiles(t, m.root, release); !slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(p string) bool { return strings.HasSuffix(p, "/crc8.ko") }) {
			t.Errorf("the bystander's module is lost for %s: %v", release, files)
		}
	}
}

// TestTortureKill kills commands at random moments while others run. Nothing that was
// acknowledged is lost and nothing is left half-done. TestKill does so with real builds.
func TestTortureKill(t *testing.T) {
	wanted := int64(100)
	if full {
		wanted = 1000
	}
	m := newMachine(t)
	var kills, tries atomic.Int64
	var all sync.WaitGroup
	for _, w := range workers(t, m, 3) {
		all.Go(func() {
			longest := 300 * time.Millisecond
			for kills.Load() < wanted && tries.Add(1) < 20*wanted && !t.Failed() {
				if w.step(time.Duration(1 + w.dice.Int64N(int64(longest)))) {
					kills.Add(1)
				}
			}
		})
	}
	all.Wait()
	m.checkBystander(t)
	m.checkClean(t)
	t.Logf("%d of %d commands were killed", kills.Load(), tries.Load())
	if kills.Load() < wanted {
		t.Errorf("only %d of %d kills", kills.Load(), wanted)
	}
}

// TestTortureCrowd lets 16 processes run at the same time: writers that each know what
// must come of their commands, and readers, who are never refused.
func TestTortureCrowd(t *testing.T) {
	length := 15 * time.Second
	if full {
		length = 2 * time.Minute
	}
	m := newMachine(t)
	var all sync.WaitGroup
	var commands atomic.Int64
	end := time.Now().Add(length)
	for _, w := range workers(t, m, 8, "--lock-timeout", "2m") {
		all.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				w.step(0)
				commands.Add(1)
			}
		})
	}
	readers := [][]string{{"status"}, {"history", "own0"}, {"kernels"}, {"gc", "--dry-run"}, {"export", "disk", "-o", "-"}, {"info", "crc8", "-k", tortured[1]}, {"pin"}, {"status", "--json"}}
	for _, args := range readers {
		all.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				if r := m.run(t, args); r.code != 0 {
					t.Errorf("%v: exit %d: %s", args, r.code, r.stderr)
				}
				commands.Add(1)
			}
		})
	}
	all.Wait()
	m.checkBystander(t)
	m.checkClean(t)
	t.Logf("%d commands in %v", commands.Load(), length)
}

// holdLock starts a command that is stopped in its first fsync: it holds the lock.
func (m machine) holdLock(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	argv := append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:signal=SIGSTOP:when=1", m.program, "--root", m.root}, args...)
	cmd := exec.Command("strace", argv...)
	check(t, cmd.Start())
	deadline := time.Now().Add(time.Minute)
	for m.writerState() != "T" && m.writerState() != "t" {
		if time.Now().After(deadline) {
			t.Fatal("the writer was not stopped within a minute")
		}
		time.Sleep(5 * time.Millisecond)
	}
	return cmd
}

// writer is the pid of the command that holds the lock, 0 when nobody does.
func (m machine) writer() (pid int) {
	text, _ := os.ReadFile(filepath.Join(m.state(), "writer"))
	_, words, _ := strings.Cut(string(text), " ")
	fmt.Sscanf(words, "pid %d", &pid)
	return pid
}

func (m machine) writerState() string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.writer()))
	_, rest, _ := strings.Cut(string(stat), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// TestTortureHolder: readers do not wait for a writer, however long it takes; a writer
// waits as long as it was told to and names whom it waits for; a dead one is no obstacle.
func TestTortureHolder(t *testing.T) {
	m := newMachine(t)
	var err error
	m.program, err = oneThread()
	check(t, err)
	m.must(t, "install", "disk")
	holder := m.holdLock(t, "install", "net@1.0")
	pid := m.writer()
	for _, args := range [][]string{{"status"}, {"history", "disk"}, {"gc", "--dry-run"}, {"verify"}, {"install", "disk", "--dry-run"}} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if out, err := exec.CommandContext(ctx, m.program, append([]string{"--root", m.root}, args...)...).CombinedOutput(); err != nil {
			t.Errorf("%v beside a writer: %v: %s", args, err, out)
		}
		cancel()
	}
	r := m.run(t, []string{"--lock-timeout", "300ms", "uninstall", "disk"})
	if want := fmt.Sprintf("pid %d (kmodctl install net@1.0) since ", pid); r.code != exitBusy || !strings.Contains(r.stderr, want) {
		t.Errorf("exit %d, want %d and %q: %s", r.code, exitBusy, want, r.stderr)
	}
	check(t, syscall.Kill(pid, syscall.SIGCONT))
	if err := holder.Wait(); err != nil {
		t.Errorf("the stopped writer, let go: %v", err)
	}
	m.checkClean(t)

	holder = m.holdLock(t, "uninstall", "net")
	check(t, syscall.Kill(m.writer(), syscall.SIGKILL))
	var exit *exec.ExitError
	if err := holder.Wait(); !errors.As(err, &exit) {
		t.Errorf("the killed writer: %v", err)
	}
	if r := m.run(t, []string{"--lock-timeout", "0s", "uninstall", "net"}); r.code != 0 {
		t.Errorf("after a dead writer: exit %d: %s", r.code, r.stderr)
	}
	m.checkClean(t)
}
