package loader_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/vm"
	"kmodctl/loader"
)

// TestRefusals provokes every refusal and warning of the catalogue on both series,
// each in a guest booted for it, and prints the table cause x kernel x named.
func TestRefusals(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	releases := installed(t)
	built := make(map[string]string)
	for _, release := range releases {
		built[release] = kbuild(t, release, "testdata/answers", "testdata/causes")
	}
	key, cert := strangersKey(t)
	var table sync.Map // of answers, by release and row
	t.Run("on", func(t *testing.T) {
		for i, release := range releases {
			dir := makeSpecimens(t, release, built[release], built[releases[1-i]], key, cert)
			target := loader.NewTarget("/", release, loader.OpenIndex("/", "/lib/modules/"+release), nil, nil)
			target.Thorough = true
			for _, boot := range boots() {
				t.Run(strings.TrimSuffix(release+" "+boot, " "), func(t *testing.T) {
					t.Parallel()
					rows, answers := runBoot(t, self, release, boot, dir)
					for i, r := range rows {
						// What depends on the kernel's image is asked here: the guest has none.
						if !r.ask.ofPolicy() || answers[i].offline() == "" {
							answers[i].Findings = loader.Check(r.ask.plan(dir, true), target)
						}
						table.Store(release+r.ask.Row, answers[i])
						r.on(release).compare(t, answers[i])
					}
				})
			}
		}
	})
	t.Logf("what the kernel answers, what is named as the cause, and what is named without asking the kernel:\n%s", render(releases, &table))
	score(t, releases, &table)
}

// score holds the offline check to what it promises: of the refusals that do not
// depend on init, hardware or memory it names 90 in 100 alone.
func score(t *testing.T, releases []string, table *sync.Map) {
	could, did := 0, 0
	causes := make(map[loader.CauseID]bool)
	for _, release := range releases {
		for _, r := range catalogue {
			e := r.on(release)
			value, ok := table.Load(release + r.ask.Row)
			if !ok || e.errno == 0 || r.ask.Remove != "" {
				continue
			}
			causes[cmp.Or(e.cause, e.offline)] = true
			if r.ask.File == "answers" || r.ask.While == whileStarting || e.errno == unix.ENOMEM {
				continue // init or memory decides
			}
			could++
			if offline := value.(answer).offline(); offline != "" && offline == e.alone() {
				did++
			}
		}
	}
	t.Logf("%d causes; of %d refusals that init, hardware and memory do not decide the offline check names %d alone: %d in 100", len(causes), could, did, did*100/could)
	if did*100 < could*90 || len(causes) < 30 {
		t.Errorf("%d causes, want 30; the offline check names %d of %d refusals, want 90 in 100", len(causes), did, could)
	}
}

// render writes the table of all answers.
func render(releases []string, table *sync.Map) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t%s\t\t\t%s\n", releases[0], releases[1])
	for _, r := range catalogue {
		fmt.Fprint(w, r.ask.Row)
		for _, release := range releases {
			value, _ := table.Load(release + r.ask.Row)
			a, _ := value.(answer)
			fmt.Fprintf(w, "\t%s\t%s\t%s", errnoName(a.Errno), a.named(), cmp.Or(a.offline(), "-"))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return out.String()
}

// boots are the kernel command lines of the catalogue, each once.
func boots() (list []string) {
	for _, r := range catalogue {
		if !slices.Contains(list, r.boot) {
			list = append(list, r.boot)
		}
	}
	return list
}

// runBoot asks one kernel all questions of one command line.
func runBoot(t *testing.T, self, release, boot, dir string) (rows []refusal, answers []answer) {
	t.Helper()
	var ask []question
	for _, r := range catalogue {
		if r.boot == boot {
			ask = append(ask, r.ask)
			rows = append(rows, r)
		}
	}
	questions, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	sound := intreeSpecimen(t, release)
	var out, console bytes.Buffer
	exit, err := vm.Run(t.Context(), vm.Config{
		Image: "/boot/vmlinuz-" + release, Init: self, Env: map[string]string{guestMode: "catalogue"},
		// The timer check panics on a machine whose processors have too much else to do.
		Append: strings.TrimSpace(boot + " no_timer_check"),
		Files: []vm.File{
			{Guest: questionsFile, Data: questions},
			{Guest: specimens, Host: dir},
			{Guest: sound, Host: sound}, // by which the kernel's own vermagic is known there
		},
		Output: &out, Console: &console, MemoryMB: 768, Timeout: 10 * time.Minute, // one question alone takes half a minute
	})
	if err != nil || exit != 0 {
		t.Fatalf("exit code %d, %v\n%s\n%s", exit, err, out.String(), console.String())
	}
	answers = readAnswers(t, out.String())
	if len(answers) != len(rows) {
		t.Fatalf("%d answers to %d questions\n%s", len(answers), len(rows), out.String())
	}
	return rows, answers
}

// readAnswers finds the answers among what else the guest printed.
func readAnswers(t *testing.T, out string) (answers []answer) {
	for line := range strings.Lines(out) {
		text, ok := strings.CutPrefix(line, answerMark)
		if !ok {
			continue
		}
		var a answer
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		answers = append(answers, a)
	}
	return answers
}

// makeSpecimens writes all files of the catalogue for one kernel into a folder: what
// kbuild made, and damaged copies of it.
func makeSpecimens(t *testing.T, release, own, foreign, key, cert string) (dir string) {
	t.Helper()
	files := make(map[string][]byte)
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, folder := range []string{"answers", "causes"} {
		modules, _ := filepath.Glob(filepath.Join(own, folder, "*.ko"))
		for _, path := range modules {
			files[strings.TrimSuffix(filepath.Base(path), ".ko")] = read(path)
		}
	}
	files["foreign"] = read(foreign + "/causes/victim.ko")
	files["notmodule"] = read(own + "/causes/victim.o")
	files["intree"] = unpacked(t, read(intreeSpecimen(t, release)))
	files["signed"] = signed("/lib/modules/"+release+"/build/scripts/sign-file", key, cert)(t, slices.Clone(files["victim"]))
	for _, d := range damaged {
		base := files[cmp.Or(d.of, "victim")]
		if base == nil {
			t.Fatalf("%s is made of %s, which is not there", d.name, d.of)
		}
		files[d.name] = d.how(t, slices.Clone(base))
	}
	dir = t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.ko"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// intreeSpecimen is a module of the distribution, signed, that needs no other.
func intreeSpecimen(t *testing.T, release string) string {
	t.Helper()
	path, deps, ok := loader.OpenIndex("/", "/lib/modules/"+release).Find("llc")
	if !ok || len(deps) != 0 {
		t.Fatalf("llc of %s: %t, needs %q", release, ok, deps)
	}
	return path
}

// compare holds an answer against what it must be.
func (e expect) compare(t *testing.T, a answer) {
	t.Helper()
	told := a.Err
	if e.errno == 0 {
		told = strings.Join(append(a.Log, a.Notes...), "\n")
	}
	if a.Errno != e.errno || a.CauseID != e.cause || !strings.Contains(told, e.says) {
		t.Errorf("%s:\n got %s, %s, %+v\nwant %s, %s, %q", a.Row, errnoName(a.Errno), a.CauseID, a, errnoName(e.errno), e.cause, e.says)
	}
	if got, want := a.offline(), e.alone(); got != want {
		t.Errorf("%s: without asking the kernel it is %q, want %q\n%+v", a.Row, got, want, a.Findings)
	}
}
