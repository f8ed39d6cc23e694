package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func jobserver(t *testing.T, tokens int) *Jobserver {
	t.Helper()
	dir := t.TempDir()
	open(t, dir)
	s, err := NewJobserver(dir, tokens)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// count is how many tokens there are when nobody has any.
func (s *Jobserver) count(t *testing.T) int {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Read(s.writes, buf)
	if err != nil {
		t.Fatal(err)
	}
	s.put(n)
	return n
}

// fifoSeen is the fifo's path as a build sees it.
func fifoSeen(s *Jobserver, refused bool) string {
	if refused {
		return s.fifo
	}
	return "/tmp/kmodctl/jobs/fifo"
}

var jobTimes = regexp.MustCompile(`(?m)^job (\d+) (\d+)$`)

// Three builds, each of which would start eight jobs at once, run as many jobs together as
// there are tokens, and not one more; in a namespace and without.
func TestJobserver(t *testing.T) {
	k := series(t, "6.1.")
	const tokens = 3
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprintf("namespaces refused %v", refused), func(t *testing.T) {
			if refused {
				refuseNamespaces(t)
			}
			s := jobserver(t, tokens)
			var tasks []Task
			var logs [3]bytes.Buffer
			for i := range logs {
				files := helloTree(t)
				files["kmod.toml"] += "[build]\nprepare = [[\"make\", \"-f\", \"jobs.mk\"], [\"sh\", \"./newer\"]]\n"
				files["newer"] = "exec 8<>" + fifoSeen(s, refused) + "\n" // as make 4.4 does
				files["jobs.mk"] = "jobs = 1 2 3 4 5 6 7 8\nall: $(jobs)\n$(jobs):\n\t@from=$$(date +%s%N); sleep 0.05; echo job $$from $$(date +%s%N)\n"
				dir := tree(t, files)
				open(t, dir)
				j, _ := job(t, k, dir)
				j.Jobserver, j.Log = s, &logs[i]
				tasks = append(tasks, Task{Run: func() {
					if _, _, err := Run(t.Context(), j); err != nil {
						t.Errorf("%v\n%s", err, &logs[i])
					}
				}})
			}
			if err := s.Schedule(t.Context(), tasks); err != nil {
				t.Fatal(err)
			}
			var jobs [][][]byte
			for i := range logs {
				jobs = append(jobs, jobTimes.FindAllSubmatch(logs[i].Bytes(), -1)...)
			}
			if most := together(jobs); len(jobs) != 24 || most != tokens {
				t.Errorf("%d jobs ran, %d at once; want 24, %d\n%s", len(jobs), most, tokens, jobs)
			}
			if n := s.count(t); n != tokens {
				t.Errorf("%d tokens are left of %d", n, tokens)
			}
		})
	}
}

// together is how many of the intervals overlap.
func together(intervals [][][]byte) (most int) {
	type turn struct{ at, step int }
	var turns []turn
	for _, i := range intervals {
		from, _ := strconv.Atoi(string(i[1]))
		to, _ := strconv.Atoi(string(i[2]))
		turns = append(turns, turn{from, 1}, turn{to, -1})
	}
	slices.SortFunc(turns, func(a, b turn) int { return a.at - b.at })
	now := 0
	for _, t := range turns {
		now += t.step
		most = max(most, now)
	}
	return most
}

// A source that takes all tokens, or adds some, harms the others no longer than it runs.
func TestJobserverRobbed(t *testing.T) {
	k := series(t, "6.1.")
	for _, theft := range []string{"head -c 1 <&5 >/dev/null", "printf ++++++++ >&6", "head -c 70000 /dev/zero >&6"} {
		s := jobserver(t, 2)
		files := helloTree(t)
		files["kmod.toml"] += "[build]\nprepare = [[\"timeout\", \"2\", \"sh\", \"./steal\"]]\n"
		files["steal"] = theft + "\nexit 0\n"
		dir := tree(t, files)
		open(t, dir)
		j, log := job(t, k, dir)
		j.Jobserver = s
		err := s.Schedule(t.Context(), []Task{{Run: func() { Run(t.Context(), j) }}})
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		if n := s.count(t); n != 2 {
			t.Errorf("after %s: %d tokens, want 2", theft, n)
		}
	}
}

// The form of the flags is that of make's version: a newer one does not speak of descriptors
// that an older one understands.
func TestJobserverFlags(t *testing.T) {
	for identity, want := range map[string]string{
		"GNU Make 4.3":   "MAKEFLAGS= -j --jobserver-auth=5,6",
		"GNU Make 4.4":   "MAKEFLAGS= -j --jobserver-auth=fifo:/x/fifo",
		"GNU Make 4.4.1": "MAKEFLAGS= -j --jobserver-auth=fifo:/x/fifo",
		"GNU Make 5.0":   "MAKEFLAGS= -j --jobserver-auth=fifo:/x/fifo",
		"GNU Make 3.82":  "MAKEFLAGS= -j --jobserver-auth=5,6",
		"bmake":          "MAKEFLAGS= -j --jobserver-auth=5,6",
	} {
		if got := (&Jobserver{make: identity}).flags("/x/fifo"); got != want {
			t.Errorf("%s: %s, want %s", identity, got, want)
		}
	}
}

func TestJobserverWithoutMake(t *testing.T) {
	path := searchPath
	searchPath = []string{t.TempDir()}
	defer func() { searchPath = path }()
	_, err := NewJobserver(t.TempDir(), 2)
	if want := `make jobserver: exec: "make": not installed`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestSchedule(t *testing.T) {
	s := jobserver(t, 1)
	var order []string
	task := func(name string, seconds float64, after ...int) Task {
		return Task{seconds, after, func() { order = append(order, name) }}
	}
	// Of a and b the kernel's work ends in its install; c is long, and d's chain is the longest.
	tasks := []Task{
		task("a", 1), task("b", 2), task("install", 0, 0, 1), task("c", 4), task("d", 3), task("needs d", 2, 4),
	}
	if err := s.Schedule(t.Context(), tasks); err != nil {
		t.Fatal(err)
	}
	if want := []string{"d", "c", "b", "needs d", "a", "install"}; !slices.Equal(order, want) {
		t.Errorf("%v, want %v", order, want)
	}
}

// With two tokens two tasks run at once; what waits for both begins after them.
func TestScheduleTogether(t *testing.T) {
	s := jobserver(t, 2)
	first, second := make(chan bool), make(chan bool)
	var ended [2]bool
	tasks := []Task{
		{Run: func() { close(first); <-second; ended[0] = true }},
		{Run: func() { close(second); <-first; ended[1] = true }},
		{After: []int{0, 1}, Run: func() {
			if !ended[0] || !ended[1] {
				t.Error("began too early")
			}
		}},
	}
	if err := s.Schedule(t.Context(), tasks); err != nil {
		t.Fatal(err)
	}
}

func TestScheduleCancelled(t *testing.T) {
	s := jobserver(t, 1)
	why := errors.New("that is enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	ran := 0
	tasks := []Task{{Run: func() { ran++; cancel(why) }}, {Run: func() { ran++ }}}
	if err := s.Schedule(ctx, tasks); err != why || ran != 1 {
		t.Errorf("%v after %d tasks, want %v after 1", err, ran, why)
	}
}

func TestParallel(t *testing.T) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	room, ok := freeMemory()
	if !ok || !bytes.Contains(text, []byte("MemAvailable:")) || room < compilerMemory {
		t.Errorf("%d bytes, %v, of\n%s", room, ok, text)
	}
	if n := Parallel(); n < 1 {
		t.Errorf("%d compilers", n)
	}
}
