package loader_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/internal/vm"
	"kmodctl/loader"
)

// guestMode is in the environment of the test binary when it runs in a guest: what
// it shall do there.
const guestMode = "KMODCTL_LOADER_GUEST"

func TestMain(m *testing.M) {
	loader.Stage()
	vm.Main(func() int {
		var err error
		switch mode, first, _ := strings.Cut(os.Getenv(guestMode), " "); mode {
		case "":
			return m.Run()
		case "catalogue", "stdin":
			err = answerQuestions()
		case "packed":
			err = loadPacked()
		case "insert":
			err = insert(first)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	})
}

const (
	questionsFile = "/questions.json"
	answerMark    = "ANSWER "
)

// specimens is where the files of the catalogue are in the guest.
const specimens = "/mod"

func specimen(name string) string { return specimens + "/" + name + ".ko" }

// question is a call that the guest shall make through the loader.
type question struct {
	Row    string   // its name in the table
	File   string   // of the specimens, to insert
	Params string   // its parameters
	Remove string   // a module to remove instead
	First  []string // "FILE PARAMETERS" to insert before
	While  string   // one of the states below
	Policy bool     // the kernel's command line decides
}

// What a call of the catalogue may find itself in, besides an ordinary system.
const (
	whileWritten  = "the file is open for writing"
	whileOpen     = "/dev/held is open"
	whileStarting = "the first of First is still in its init"
	whileNobody   = "the process has no capabilities"
	whileDisabled = "modules_disabled is 1"
)

// answer is how a call ended.
type answer struct {
	Row     string
	Errno   unix.Errno // the kernel's
	Asked   bool       // Errno was found by a call beside the loader, which had refused by itself
	Outcome string     // the loader's, when all went well
	Err     string     // the loader's error
	Cause   string     // what it names as the cause
	CauseID loader.CauseID
	Log     []string
	Notes   []string

	Findings []loader.Finding // of the check that does not ask the kernel
}

// offline is the cause that the check names, "" if it has no objection.
func (a answer) offline() loader.CauseID {
	f, _ := loader.FirstRefused(a.Findings)
	return f.Cause
}

// ofPolicy reports whether what the running kernel lets in decides the question, so
// that the check must be made there.
func (q *question) ofPolicy() bool {
	return q.Policy || q.While == whileNobody || q.While == whileDisabled || q.While == whileWritten
}

// plan is the plan of the question, with the files in that folder, and with First
// where that is not loaded.
func (q *question) plan(dir string, whole bool) *loader.Plan {
	var p loader.Plan
	insertion := func(file, params string) {
		s := loader.Step{Action: loader.Insert, Module: file, Path: filepath.Join(dir, file+".ko"), Params: params}
		if info, err := ko.Open(s.Path); err == nil {
			s.Module = info.Name
		}
		p.Steps = append(p.Steps, s)
	}
	if whole {
		for _, first := range q.First {
			file, params, _ := strings.Cut(first, " ")
			insertion(file, params)
		}
	}
	if q.Remove != "" {
		p.Steps = append(p.Steps, loader.Step{Action: loader.Remove, Module: q.Remove})
	} else {
		insertion(q.File, q.Params)
	}
	return &p
}

func errnoName(e unix.Errno) string {
	if e == 0 {
		return "0"
	}
	return cmp.Or(unix.ErrnoName(e), strconv.Itoa(int(e)))
}

// named is what a user learns of the cause.
func (a answer) named() string {
	if a.CauseID != "" || a.Err == "" {
		return cmp.Or(string(a.CauseID), a.Outcome)
	}
	_, cause, _ := strings.Cut(a.Err, ": ")
	return cause
}

// answerQuestions is the guest's side of TestRefusals.
func answerQuestions() error {
	text, err := os.ReadFile(questionsFile)
	if os.Getenv(guestMode) == "stdin" {
		text, err = io.ReadAll(os.Stdin)
	}
	if err != nil {
		return err
	}
	var questions []question
	if err := json.Unmarshal(text, &questions); err != nil {
		return err
	}
	l := loader.New(loader.DefaultTimeout)
	defer l.Close()
	for _, q := range questions {
		a, err := q.answer(l)
		if err != nil {
			return fmt.Errorf("%s: %w", q.Row, err)
		}
		text, err := json.Marshal(a)
		if err != nil {
			return err
		}
		fmt.Printf("%s%s\n", answerMark, text)
	}
	return nil
}

func release() string {
	name, err := kernel.Running()
	if err != nil {
		panic(err)
	}
	return name
}

// answer makes the call of a question in the state that it asks for, and takes
// back afterwards what can be taken back.
func (q *question) answer(l *loader.Loader) (a answer, err error) {
	a.Row = q.Row
	defer func() { err = errors.Join(err, q.clean()) }()
	for i, first := range q.First {
		if i == 0 && q.While == whileStarting {
			loading, err := startLoading(first)
			if err != nil {
				return a, err
			}
			if q.Remove != "" {
				defer loading.Wait()
			}
		} else if err := insert(first); err != nil {
			return a, err
		}
	}
	switch q.While {
	case whileWritten:
		f, err := os.OpenFile(specimen(q.File), os.O_RDWR, 0)
		if err != nil {
			return a, err
		}
		defer f.Close()
	case whileOpen:
		f, err := os.Open("/dev/held")
		if err != nil {
			return a, err
		}
		defer f.Close()
	case whileDisabled:
		if err := os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0); err != nil {
			return a, err
		}
	case whileNobody:
		if os.Geteuid() == 0 {
			return q.asNobody()
		}
	}
	q.call(l, &a)
	return a, nil
}

// asNobody asks the same in a process without capabilities.
func (q *question) asNobody() (a answer, err error) {
	cmd := exec.Command("/init")
	text, err := json.Marshal([]*question{q})
	if err != nil {
		return a, err
	}
	cmd.Stdin = strings.NewReader(string(text))
	cmd.Env = append(os.Environ(), guestMode+"=stdin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return a, fmt.Errorf("%w: %s", err, out)
	}
	_, doc, _ := strings.Cut(string(out), answerMark)
	return a, json.Unmarshal([]byte(doc), &a)
}

// call makes the call through the loader. Where the loader refuses by itself, the
// kernel is asked beside it.
func (q *question) call(l *loader.Loader, a *answer) {
	plan := q.plan(specimens, false)
	if q.ofPolicy() {
		state, err := loader.ReadState("/")
		if err != nil {
			panic(err)
		}
		index := loader.OpenIndex("/", "/lib/modules/"+release())
		a.Findings = loader.Check(plan, loader.NewTarget("/", release(), index, nil, state))
	}
	result, err := l.Run(context.Background(), plan)
	if err == nil {
		done := result.Done[0]
		a.Outcome, a.Log, a.Notes = done.Outcome, done.Log, done.Notes
		return
	}
	a.Err = err.Error()
	var refused *loader.KernelError
	if errors.As(err, &refused) {
		a.Errno, a.Cause, a.CauseID, a.Log = refused.Errno, refused.Cause, refused.CauseID, refused.Log
		return
	}
	a.Asked = true
	if q.Remove != "" {
		err = unix.DeleteModule(q.Remove, unix.O_NONBLOCK)
	} else {
		err = finit(specimen(q.File), q.Params)
	}
	errors.As(err, &a.Errno)
}

// finit is finit_module(2) without our loader.
func finit(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil {
		return fmt.Errorf("finit_module %s: %w", path, err)
	}
	return nil
}

// insert inserts "FILE PARAMETERS", unless it is there.
func insert(first string) error {
	name, params, _ := strings.Cut(first, " ")
	if err := finit(specimen(name), params); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// startLoading begins to insert "FILE PARAMETERS" and returns when its init runs. A
// process of its own does it: ours could not end before the init does.
func startLoading(first string) (*exec.Cmd, error) {
	cmd := exec.Command("/init")
	cmd.Env = append(os.Environ(), guestMode+"=insert "+first)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(first, " ")
	for {
		switch state, _ := os.ReadFile("/sys/module/" + name + "/initstate"); string(state) {
		case "coming\n":
			return cmd, nil
		case "live\n":
			return nil, fmt.Errorf("the init of %s was over too soon", name)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// clean removes what the question has loaded, last first: all but what has no exit
// function, or is in its init.
func (q *question) clean() error {
	state, err := loader.ReadState("/")
	if err != nil {
		return err
	}
	for _, m := range state.Modules { // newest first
		if err := unix.DeleteModule(m.Name, unix.O_NONBLOCK); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("clean up: remove %s: %w", m.Name, err)
		}
	}
	return nil
}
