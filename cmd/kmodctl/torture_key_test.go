package main

import (
	"crypto"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"kmodctl/internal/keys"
)

// TestTortureKeys makes the n-th call of each kind fail, or kmodctl die there, while it makes the first key, the next one, or has
// that one sign: which key signs is never in doubt, half a key is none, nothing of a private key stays behind, and the command
// given again succeeds. In full each call, else one in a few.
func TestTortureKeys(t *testing.T) {
	program, err := oneThread()
	check(t, err)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	bare := machine{root: t.TempDir(), aside: t.TempDir(), program: program}
	for _, dir := range []string{"etc", "lib", "var/lib"} {
		check(t, os.MkdirAll(filepath.Join(bare.root, dir), 0o755))
	}
	owner := bare.copyOf(t)
	owner.newKey(t)
	heir := owner.copyOf(t)
	_, _, err = heir.store().Rotate(t.Context(), keys.New{})
	check(t, err)
	for i, c := range []struct {
		ready  machine
		args   string
		before string
		after  string
	}{
		{bare, "key new", "", "mok1 active"},
		{owner, "key rotate", "mok1 active", "mok1 active, mok2 next"},
		{heir, "key rotate --now", "mok1 active, mok2 next", "mok1 old, mok2 active"},
	} {
		t.Run(c.args, func(t *testing.T) {
			dice := rand.New(rand.NewPCG(seed, uint64(i)))
			args := strings.Fields(c.args)
			_, calls := c.ready.copyOf(t).trace(t, args, false, "-e", "trace="+strings.Join(injected, ","))
			var trials sync.WaitGroup
			room := make(chan bool, runtime.NumCPU())
			for _, at := range calls {
				for _, fault := range faults {
					if at.kind == "waitid" || !full && dice.IntN(6) > 0 {
						continue
					}
					room <- true
					trials.Go(func() {
						defer func() { <-room }()
						m := c.ready.copyOf(t)
						defer m.remove(t)
						inject := fmt.Sprintf("%s:%s:when=%d", at.kind, fault, at.n)
						r, _ := m.trace(t, args, false, "-e", "trace="+at.kind, "-e", "inject="+inject)
						bad := &failures{TB: t, what: c.args + " " + inject + " at " + at.point, said: r}
						now := m.checkKeys(bad)
						if now != c.before && now != c.after || r.code == 0 && now != c.after {
							bad.Errorf("there is %q", now)
						}
						if now != c.after {
							again := m.run(bad, args)
							if now = m.checkKeys(bad); again.code != 0 || now != c.after {
								bad.Errorf("given again: exit %d, %q: %s", again.code, now, again.stderr)
							}
						}
						if left, _ := filepath.Glob(filepath.Join(m.root, keys.Folder, ".new-*")); len(left) > 0 {
							bad.Errorf("left behind: %q", left)
						}
					})
				}
			}
			trials.Wait()
		})
	}
}

// checkKeys holds that each key is whole and its owner's alone, and returns their names and states.
func (m machine) checkKeys(t testing.TB) string {
	t.Helper()
	all, err := m.store().List()
	check(t, err)
	var said []string
	for _, k := range all {
		said = append(said, k.Name+" "+k.State)
		info, err := os.Stat(filepath.Join(m.root, keys.Folder, k.Name, "key.pem"))
		check(t, err)
		public := signerIn(t, m.root, k.Name).key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if info.Mode() != 0o600 || !public.Equal(k.Cert.PublicKey) {
			t.Errorf("key %s: mode %v, or its certificate is another's", k.Name, info.Mode())
		}
	}
	return strings.Join(said, ", ")
}
