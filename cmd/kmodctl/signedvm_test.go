package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"kmodctl/internal/ko"
	"kmodctl/internal/vm"
	"kmodctl/loader"
)

// guestFiles is where the modules of TestSignaturesOnRealKernels are in the guest, by the names of its cases.
const guestFiles = "/mod"

// answerMark begins a line with a signatureAnswer.
const answerMark = "ANSWER "

// signatureCase is a module, and what comes of it where signatures are asked for.
type signatureCase struct {
	name               string
	enforced, locked   unix.Errno     // what the kernel says under module.sig_enforce=1 and under lockdown=integrity; 0: it is loaded
	cause, lockdown    loader.CauseID // what explain finds in the guest, which has no image of the kernel
	why, lockdownWhy   string         // what load says
	line, lockdownLine string         // what the kernel prints, if it does
}

var signatureCases = []signatureCase{
	{name: "unsigned", enforced: unix.EKEYREJECTED, locked: unix.EPERM, cause: loader.CauseUnsigned, lockdown: loader.CauseLockdown,
		why: "the kernel takes signed modules only, and the file is unsigned", lockdownWhy: "the kernel is locked down (Secure Boot), and the file is unsigned",
		line: "Loading of unsigned module is rejected", lockdownLine: "unsigned module loading is restricted"},
	{name: "unknown", enforced: unix.EKEYREJECTED, locked: unix.EPERM, cause: loader.CauseUnknownKey, lockdown: loader.CauseLockdown,
		why: "it does not have the key that signed the file", lockdownWhy: "it does not have the key that signed the file",
		line: "Loading of module with unavailable key is rejected", lockdownLine: "unsigned module loading is restricted"},
	{name: "tampered", enforced: unix.EKEYREJECTED, locked: unix.EKEYREJECTED,
		why: "the signing key is trusted, but the file has changed since it was signed", lockdownWhy: "the signing key is trusted, but the file has changed since it was signed"},
	{name: "trusted"},
}

// signatureAnswer is what a guest found about a case.
type signatureAnswer struct {
	Case   string
	Errno  unix.Errno // of finit_module without kmodctl
	Cause  loader.CauseID
	Stderr string // of load
}

// TestSignaturesOnRealKernels has modules loaded whose signature is none, one of a stranger, one that does not fit any more, and one of
// the distribution's, by kernels that ask for signatures: what the kernel answers, and what the user is told.
func TestSignaturesOnRealKernels(t *testing.T) {
	var table bytes.Buffer
	rows := make(chan string, 64)
	t.Run("on", func(t *testing.T) {
		for _, release := range releases(t) {
			files, dir := signatureFiles(t, release)
			t.Run(release+" explain", func(t *testing.T) {
				t.Parallel()
				r := kmodctl(t, "explain", filepath.Join(dir, "tampered.ko"), "-k", release) // by the certificates in the image
				if r.code != exitRefused || !strings.Contains(r.out, string(loader.CauseSignatureDiffers)) || !strings.Contains(r.stderr, "try:  ") {
					t.Errorf("exit %d\n%s%s", r.code, r.out, r.stderr)
				}
			})
			for _, boot := range []string{"module.sig_enforce=1", "lockdown=integrity"} {
				t.Run(release+" "+boot, func(t *testing.T) {
					t.Parallel()
					for line := range strings.Lines(bootGuest(t, release, guestSigned, vm.Config{Append: boot, Files: files})) {
						text, ok := strings.CutPrefix(line, answerMark)
						if !ok {
							continue
						}
						var a signatureAnswer
						if err := json.Unmarshal([]byte(text), &a); err != nil {
							t.Errorf("%v: %s", err, line)
						}
						rows <- fmt.Sprintf("%s\t%s\t%s\t%s\t%s\n", release, boot, a.Case, unix.ErrnoName(a.Errno), strings.ReplaceAll(strings.TrimSpace(a.Stderr), "\n", " | "))
					}
				})
			}
		}
	})
	close(rows)
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	n := 0
	for row := range rows {
		n++
		fmt.Fprint(w, row)
	}
	w.Flush()
	t.Logf("what the kernel answers, and what load says:\n%s", table.String())
	if want := len(releases(t)) * 2 * len(signatureCases); n != want {
		t.Errorf("%d answers, want %d", n, want)
	}
}

// signatureFiles makes the module of each case, in a folder and as files of a guest.
func signatureFiles(t *testing.T, release string) (files []vm.File, dir string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	kbuild(t, release, "../../loader/testdata/answers", dir)
	unsigned, err := os.ReadFile(filepath.Join(dir, "answers.ko"))
	if err != nil {
		t.Fatal(err)
	}
	intree, _, ok := loader.OpenIndex("/", "/lib/modules/"+release).Find("llc")
	if !ok {
		t.Fatalf("%s has no module llc", release)
	}
	packed, err := os.ReadFile(intree)
	if err != nil {
		t.Fatal(err)
	}
	trusted, _, err := ko.Decompress(packed)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"unsigned": unsigned,
		"unknown":  newSigner(t, "a stranger").sign(t, unsigned),
		"tampered": bytes.Replace(trusted, []byte("description=LLC"), []byte("description=llc"), 1),
		"trusted":  trusted,
	} {
		file := filepath.Join(dir, name+".ko")
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, vm.File{Guest: filepath.Join(guestFiles, name+".ko"), Host: file})
	}
	return append(files, vm.File{Guest: guestBinary, Host: path}, vm.File{Guest: intree, Host: intree}), dir
}

// signatureChecks is the main program of the virtual machine.
func (g *guest) signatureChecks() {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		g.errorf("%v", err)
	}
	locked := strings.Contains(string(cmdline), "lockdown=integrity")
	for _, c := range signatureCases {
		errno, cause, why, line := c.enforced, c.cause, c.why, c.line
		if locked {
			errno, cause, why, line = c.locked, c.lockdown, c.lockdownWhy, c.lockdownLine
		}
		g.signature(c.name, errno, cause, why, line)
	}
}

// signature asks the kernel, and kmodctl in three ways.
func (g *guest) signature(name string, errno unix.Errno, cause loader.CauseID, why, line string) {
	file := filepath.Join(guestFiles, name+".ko")
	a := signatureAnswer{Case: name}
	if f, err := os.Open(file); err != nil {
		g.errorf("%v", err)
	} else {
		errors.As(unix.FinitModule(int(f.Fd()), "", 0), &a.Errno)
		f.Close()
	}
	if a.Errno != errno {
		g.errorf("%s: the kernel says %v, want %v", name, a.Errno, errno)
	}
	g.clear()
	var doc explained
	code := map[bool]int{true: exitRefused}[cause != ""]
	if err := json.Unmarshal([]byte(g.run(code, "explain", file, "--json").out), &doc); err != nil {
		g.errorf("explain %s: %v", name, err)
	}
	for _, f := range doc.Findings {
		if f.Severity == loader.Refused {
			a.Cause = f.Cause
			break
		}
	}
	if a.Cause != cause {
		g.errorf("explain %s: cause %q, want %q", name, a.Cause, cause)
	}
	code = map[bool]int{true: exitRefused}[errno != 0]
	r := g.run(code, "load", file)
	a.Stderr = r.stderr
	if errno != 0 {
		words := strings.ToLower(errno.Error())
		g.says(r, words, "why:  ", why, "try:  ")
		g.says(g.run(exitRefused, "load", "--unchecked", file), "refused the module: "+words, "why:  ", "try:  ", line)
	}
	g.clear()
	text, err := json.Marshal(a)
	if err != nil {
		g.errorf("%v", err)
	}
	fmt.Printf("%s%s\n", answerMark, text)
}
