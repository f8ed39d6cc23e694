package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// TestTortureLog kills commands, which leaves what they committed in the database's log
// alone, and puts noise over the log's beginning, so that SQLite finds no log at all. It is told, and
// after repair what was said to be installed or added is that.
func TestTortureLog(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	all := newBases(t)
	var err error
	all.plain.program, err = oneThread()
	check(t, err)
	for i, s := range scenarios {
		if s.builds || s.broken {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			st, calls := s.stage(t, all)
			syncs, lost := 0, 0
			for _, c := range calls {
				if c.kind == "fsync" {
					syncs = max(syncs, c.n)
				}
			}
			dice := rand.New(rand.NewPCG(seed, uint64(i)))
			for _, n := range sample(dice, syncs) {
				if st.loseLog(t, dice, n) {
					lost++
				}
			}
			t.Logf("%d of %d kills left a log", lost, syncs)
		})
	}
}

// loseLog kills the command at its n-th fsync and spoils the log, if there is one.
func (s staged) loseLog(t *testing.T, dice *rand.Rand, n int) bool {
	t.Helper()
	m := s.ready.copyOf(t)
	defer m.remove(t)
	r, _ := m.trace(t, s.args, false, "-e", "trace=fsync", "-e", fmt.Sprintf("inject=fsync:signal=SIGKILL:when=%d", n))
	log := filepath.Join(m.state(), "registry.db-wal")
	if info, err := os.Stat(log); err != nil || info.Size() <= 32 { // its head
		return false
	}
	noise := make([]byte, 8+dice.IntN(64<<10))
	for i := range noise {
		noise[i] = byte(dice.Uint32())
	}
	spoilLog(t, log, noise)
	bad := &failures{TB: t, what: fmt.Sprintf("%s, killed at fsync %d, %d bytes of noise", s.name, n, len(noise)), said: r}
	m.checkFiles(bad, s.known)
	for _, args := range [][]string{{"status"}, {"verify"}, s.args} {
		if refused := m.run(bad, args); refused.code != exitFailed || !strings.Contains(refused.out+refused.stderr, "registry.db") || !strings.Contains(refused.stderr, "kmodctl repair") {
			bad.Errorf("%v: exit %d: %s%s", args, refused.code, refused.out, refused.stderr)
		}
	}
	m.checkFiles(bad, s.known)
	repaired := m.run(bad, []string{"repair"})
	if repaired.code != 0 {
		bad.Errorf("repair: exit %d: %s", repaired.code, repaired.stderr)
	}
	m.checkClean(bad)
	now := m.facts(bad)
	if verb := s.args[0]; verb != "remove" && verb != "uninstall" { // which may have to be said again
		if !now.unpinned().among(s.before.unpinned(), s.after.unpinned()) {
			bad.Errorf("a state that never was:\n%v\nbefore:\n%v\nafter:\n%v", now, s.before, s.after)
		}
		for key, text := range s.after.unpinned() {
			done := strings.Contains(r.stderr, " for "+key)
			if key == "" {
				done = strings.Contains(r.stderr, "added ") || strings.Contains(r.stderr, "imported ")
			}
			if done && now.unpinned()[key] != text {
				bad.Errorf("it was done, and is not after\n%s%v", repaired.stderr, now)
			}
		}
	}
	if again := m.run(bad, s.args); !s.once && again.code != 0 {
		bad.Errorf("given again: exit %d: %s", again.code, again.stderr)
	}
	if now := m.facts(bad); !s.once && !now.among(s.after) {
		bad.Errorf("given again, it left\n%v", now)
	}
	m.checkClean(bad)
	return true
}

func spoilLog(t testing.TB, log string, noise []byte) {
	t.Helper()
	f, err := os.OpenFile(log, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt(noise, 0)
	check(t, err)
	check(t, f.Close())
}

// unpinned are the facts without pins, which no file tells of.
func (a facts) unpinned() facts {
	out := facts{}
	for key, text := range a {
		out[key] = ""
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "pin ") {
				out[key] += line
			}
		}
	}
	return out
}

// loseUpgrade leaves a machine as one on which net 1.1 was just installed for a kernel, and
// the log was lost with that.
func loseUpgrade(t testing.TB, m machine) {
	t.Helper()
	reg, err := registry.OpenWriter(t.Context(), m.state(), kernel.Root(m.root), registry.WriterOptions{Command: "torture", Version: "0-test"})
	check(t, err)
	release := m.kernels[0]
	art, _, err := reg.Artifact("net", "1.1", release)
	check(t, err)
	_, err = reg.Install(t.Context(), release, []registry.Artifact{art}, nil)
	check(t, err)
	file := filepath.Join(m.state(), "registry.db")
	var killed [2][]byte
	for i, suffix := range []string{"", "-wal"} {
		killed[i], err = os.ReadFile(file + suffix)
		check(t, err)
	}
	check(t, reg.Close()) // which brings the log into the database
	for i, suffix := range []string{"", "-wal"} {
		check(t, os.WriteFile(file+suffix, killed[i], 0o644))
	}
	spoilLog(t, file+"-wal", bytes.Repeat([]byte{0xa5}, 64))
}
