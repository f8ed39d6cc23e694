package main

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kmodctl/internal/keys"
	"kmodctl/internal/ko"
)

// fleet makes a machine with so many signed packages of one module each, for both kernels.
func fleet(t *testing.T, packages int) (machine, keys.Key) {
	t.Helper()
	m := newMachine(t)
	m.must(t, "remove", "net")
	key := m.newKey(t)
	modules := []string{"crc7", "crc16", "ts_kmp", "ts_bm", "ts_fsm", "crc64", "libarc4", "cordic", "crc8", "libdes", "libchacha", "lru_cache", "libpoly1305", "bch", "dummy"}
	if packages > len(modules) {
		t.Fatalf("%d packages of %d modules", packages, len(modules))
	}
	m.must(t, "remove", "disk")
	args := []string{"install"}
	for n, module := range modules[:packages] {
		pkg := fmt.Sprintf("signed%d", n)
		m.fill(t, pkg, "1", "", module)
		args = append(args, pkg)
	}
	m.must(t, args...)
	return m, key
}

// checkSigned is what must hold at every moment of a rotation: each module is there, and what is there of it is signed by one of
// the keys. Of a module that gets another ending there are two files for a moment.
func (m machine) checkSigned(t testing.TB, stems []string, of []keys.Key) {
	t.Helper()
	for _, stem := range stems {
		there := false
		// Others change names while we look for them one after the other: a file can be missed once, and not each time.
		for try := 0; try < 5 && !there; try++ {
			for _, suffix := range []string{"", ".xz", ".zst"} {
				file := filepath.Join(m.root, stem+suffix)
				text, err := os.ReadFile(file)
				if os.IsNotExist(err) {
					continue
				}
				check(t, err)
				there = true
				if contentSignedBy(t, file, text, of) == "" {
					t.Errorf("%s is not signed", file)
				}
			}
		}
		if !there {
			t.Errorf("%s is gone", stem)
		}
	}
}

// stems are the paths of what is installed, without what compression adds to them.
func (m machine) stems(t testing.TB, of ...keys.Key) (out []string) {
	t.Helper()
	for _, i := range m.rows(t, of...) {
		out = append(out, strings.TrimSuffix(i.Path, ko.Suffix(i.Compression())))
	}
	return out
}

// TestTortureRotation signs modules again and again, with key after key and in one compression after the other, while others
// ask for the status, verify and build, and kills it at random. At every moment each module is there and signed by one of the keys; after
// the next command that may write, each row is of its file.
func TestTortureRotation(t *testing.T) {
	packages, wanted := 15, int64(12) // 30 artifacts
	if full {
		wanted = 200
	}
	m, first := fleet(t, packages)
	stems := m.stems(t, first)
	if len(stems) != packages*len(m.kernels) {
		t.Fatalf("installed: %q", stems)
	}
	all := []keys.Key{first}
	for range 2 {
		all = append(all, m.newKey(t))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))

	ctx, end := context.WithCancel(t.Context())
	var beside sync.WaitGroup
	var asked atomic.Int64
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"verify"}, {"gc", "--dry-run"}, {"build"}, {"install", "signed0"}} {
		beside.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				r := m.run(t, args)
				// What was cut off is told by who may not finish it; for these kernels nothing can be built, and build finishes what was cut off.
				told := args[0] == "verify" && strings.Contains(r.out+r.stderr, "unfinished") || args[0] == "build" && strings.Contains(r.stderr, "headers for")
				if r.code != 0 && !(r.code == exitFailed && told) {
					t.Errorf("%v: exit %d: %s%s", args, r.code, r.out, r.stderr)
				}
				asked.Add(1)
			}
		})
	}
	var kills int64
	for try := 0; kills < wanted && try < int(20*wanted) && !t.Failed(); try++ {
		key := all[dice.IntN(len(all))]
		m.activate(t, key)
		m.configure(t, []string{"", "compress = \"xz\"\n", "compress = \"zstd\"\n"}[dice.IntN(3)])
		w := worker{machine: m, t: t}
		if r := w.runFor([]string{"resign", "--all"}, time.Duration(1+dice.Int64N(int64(1500*time.Millisecond)))); r.code == -1 {
			kills++
		} else if r.code != 0 {
			t.Errorf("resign: exit %d: %s", r.code, r.stderr)
		}
		m.checkSigned(t, stems, all)
	}
	end()
	beside.Wait()
	if kills < wanted {
		t.Errorf("only %d of %d kills", kills, wanted)
	}
	t.Logf("%d kills, %d commands beside", kills, asked.Load())

	last := all[len(all)-1]
	m.activate(t, last)
	m.must(t, "resign", "--all")
	m.checkSigned(t, stems, []keys.Key{last})
	if rows := m.rows(t, last); len(rows) != len(stems) {
		t.Errorf("%d rows", len(rows))
	}
	m.checkClean(t)
	m.checkSecret(t, all)
}

// activate has a key sign from now on, in one step, as a rotation does.
func (m machine) activate(t testing.TB, key keys.Key) {
	t.Helper()
	link := filepath.Join(m.root, keys.Folder, "active")
	check(t, os.Symlink(key.Name, link+".new"))
	check(t, os.Rename(link+".new", link))
}

// checkSecret holds that no private key is in the registry, nor in a file that others may read.
func (m machine) checkSecret(t testing.TB, of []keys.Key) {
	t.Helper()
	var secrets []string
	for _, k := range of {
		text, err := os.ReadFile(k.File)
		check(t, err)
		lines := strings.Split(string(text), "\n")
		secrets = append(secrets, lines[len(lines)/2])
		if len(secrets[len(secrets)-1]) < 32 {
			t.Fatalf("no line of a key: %q", lines)
		}
	}
	looked := 0
	check(t, filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.Contains(path, keys.Folder) && info.Mode().Perm()&0o077 == 0 {
			return nil
		}
		looked++
		text, err := os.ReadFile(path)
		for _, s := range secrets {
			if strings.Contains(string(text), s) {
				t.Errorf("%s, %v, holds a part of a private key", path, info.Mode())
			}
		}
		return err
	}))
	if looked < 50 {
		t.Errorf("only %d files", looked)
	}
}

// signedScenarios are those of TestTortureFaults that sign.
var signedScenarios = []scenario{
	{name: "sign", before: withNet, args: []string{"install", "net@1.0"}, spoil: func(t testing.TB, m machine) { m.newKey(t) }},
	{name: "resign", before: withNet, args: []string{"resign", "net"}, holds: staySigned, spoil: func(t testing.TB, m machine) {
		m.newKey(t)
		m.must(t, "install", "net@1.0", "disk")
		m.newKey(t)
		m.configure(t, "compress = \"xz\"\n")
	}},
	{name: "signed lost", before: withNet, args: []string{"repair"}, broken: true, holds: staySigned, spoil: func(t testing.TB, m machine) {
		m.configure(t, "compress = \"xz\"\n")
		m.newKey(t)
		m.must(t, "install", "net@1.0", "disk")
	}, damage: loseDatabase},
}

// staySigned holds that what is installed is signed by a key of the machine, whatever happened.
func staySigned(t testing.TB, m machine) {
	t.Helper()
	all, err := m.store().List()
	check(t, err)
	var stems []string
	for _, release := range m.kernels {
		for _, module := range []string{"libarc4", "dummy", "crc8"} {
			stems = append(stems, filepath.Join("lib/modules", release, "updates/kmodctl", module+".ko"))
		}
	}
	m.checkSigned(t, stems, all)
}
