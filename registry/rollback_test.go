package registry

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"strings"
	"testing"

	"kmodctl/internal/kernel"
)

func init() {
	// Rolls net back to a version, with the depmod of a folder.
	helpers["rollback"] = func(args []string) error {
		depmodPlaces = args[2:3]
		r, err := OpenWriter(context.Background(), args[0], kernel.Root(args[1]), WriterOptions{Command: "kmodctl rollback"})
		if err != nil {
			return err
		}
		a, _, err := r.Artifact("net", args[3], release)
		if err != nil {
			return err
		}
		_, err = r.Rollback(context.Background(), a, Pins{{Package: "net", Release: release, Version: args[3]}}, nil)
		return err
	}
}

// back rolls net back and returns the version that is installed then.
func back(t *testing.T, r *Registry) string {
	t.Helper()
	p, err := r.Previous(t.Context(), "net", release)
	must(t, err)
	pin := Pin{Package: "net", Release: release, Version: p.Artifact.Version, Artifact: p.Artifact.Digest}
	_, err = r.Rollback(t.Context(), p.Artifact, Pins{pin}, nil)
	must(t, err)
	pins, err := r.Pins()
	must(t, err)
	if got, ok := pins.For("net", release); !ok || got.Artifact != p.Artifact.Digest {
		t.Errorf("pins after the rollback: %+v", pins)
	}
	return p.Artifact.Version
}

// Each rollback goes one further back; what it took away is not gone back to.
func TestRollbackGoesBack(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	for _, version := range []string{"1", "2", "3"} {
		_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", version, "net="+version)}, nil)
		must(t, err)
	}
	equal(t, "back to", []string{back(t, r), back(t, r)}, []string{"2", "1"})
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
	_, err := r.Previous(t.Context(), "net", release)
	var none *NoPreviousError
	if !errors.As(err, &none) || none.Version != "1" {
		t.Errorf("before the first: %v", err)
	}
	if _, err := r.Previous(t.Context(), "disk", release); !errors.As(err, &none) || none.Version != "" {
		t.Errorf("of what is not installed: %v", err)
	}
	as, err := r.Attempts("net", release, 1)
	must(t, err)
	if as[0].Op != OpRollback || as[0].Outcome != OutcomeOK || as[0].Version != "1" {
		t.Errorf("attempt: %+v", as[0])
	}

	a3, _, err := r.Artifact("net", "3", release)
	must(t, err)
	_, err = r.Install(t.Context(), release, []Artifact{a3}, nil)
	must(t, err)
	if v := back(t, r); v != "1" {
		t.Errorf("from 3 again: back to %s", v)
	}
	// Built again, 2 came out the same.
	for range 2 {
		_, err = r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "2", "net=2")}, nil)
		must(t, err)
	}
	if p, err := r.Previous(t.Context(), "net", release); err != nil || p.Artifact.Version != "1" {
		t.Errorf("from 2 built again: back to %s, %v", p.Artifact.Version, err)
	}
}

// What was installed before is gone back to, whatever was installed first.
func TestRollbackPast(t *testing.T) {
	r := writer(t, t.TempDir(), newRoot(t))
	as := map[string]Artifact{}
	for _, v := range []string{"1", "2", "3"} {
		as[v] = mustPut(t, r, "net", v, "net="+v)
	}
	do := func(steps ...string) {
		t.Helper()
		for _, step := range steps {
			op, v, _ := strings.Cut(step, " ")
			var err error
			switch op {
			case "install":
				_, err = r.Install(t.Context(), release, []Artifact{as[v]}, nil)
			case "rollback":
				_, err = r.Rollback(t.Context(), as[v], nil, nil)
			case "uninstall":
				_, err = r.Uninstall(t.Context(), release, []string{"net"})
			}
			must(t, err)
		}
	}
	previous := func(want string) {
		t.Helper()
		if p, err := r.Previous(t.Context(), "net", release); err != nil || p.Artifact.Version != want {
			t.Errorf("previous is %q, want %s: %v", p.Artifact.Version, want, err)
		}
	}
	do("install 1", "install 2", "rollback 1", "install 3")
	previous("1")
	do("install 1")
	previous("3")
	do("uninstall", "install 1")
	previous("3")
	do("rollback 3")
	previous("1")
	do("install 2", "rollback 1", "rollback 2") // which the past does not have
	previous("1")
	// A history that does not end with what is installed is all of it past.
	must(t, r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM attempt WHERE id = (SELECT max(id) FROM attempt)`)
		return err
	}))
	previous("1")
}

// A build that failed to be installed, one that never was, and one whose blob is damaged
// are nothing to go back to.
func TestRollbackTakesWhatWasGood(t *testing.T) {
	root := newRoot(t)
	r := writer(t, t.TempDir(), root)
	install := func(version string) Artifact {
		t.Helper()
		a := mustPut(t, r, "net", version, "net="+version)
		_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
		must(t, err)
		return a
	}
	install("1")
	flipped, lost := install("2"), install("3")
	mustPut(t, r, "net", "4", "net=4")
	places := depmodPlaces
	fakeDepmod(t, "exit 1")
	if _, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", "5", "net=5")}, nil); err == nil {
		t.Fatal("a failing depmod was no error")
	}
	depmodPlaces = places
	install("6")
	flipBit(t, r.BlobPath(flipped.Modules[0].Digest))
	must(t, os.Remove(r.BlobPath(lost.Modules[0].Digest)))
	p, err := r.Previous(t.Context(), "net", release)
	must(t, err)
	if p.Artifact.Version != "1" || p.From.Version != "6" || len(p.Damaged) != 2 || !strings.Contains(p.Damaged[1].Error(), "net@2 ") {
		t.Errorf("previous: %+v", p)
	}
	if v := back(t, r); v != "1" {
		t.Errorf("back to %s", v)
	}
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
}

// A rollback that is cut off behind the intent is finished with its pin.
func TestRollbackCutOff(t *testing.T) {
	root, dir := newRoot(t), t.TempDir()
	r := writer(t, dir, root)
	for _, version := range []string{"1", "2"} {
		_, err := r.Install(t.Context(), release, []Artifact{mustPut(t, r, "net", version, "net="+version)}, nil)
		must(t, err)
	}
	p, err := r.Previous(t.Context(), "net", release)
	must(t, err)
	must(t, r.Close())
	bin := tree(t, "depmod!=#!/bin/bash\n[ \"${@: -1}\" = -n ] && exec /usr/sbin/depmod \"$@\"\nkill -9 $PPID\n")
	if err := helper("rollback", dir, string(root), bin, p.Artifact.Version).Run(); err == nil {
		t.Fatal("it was not killed")
	}
	r = writer(t, dir, root)
	equal(t, "installed", installed(t, r, root), []string{"net=1"})
	pins, err := r.Pins()
	must(t, err)
	if got, ok := pins.For("net", release); !ok || got.Version != "1" {
		t.Errorf("pins: %+v", pins)
	}
	if as, err := r.Resumed("net"); err != nil || len(as) != 1 || as[0].Op != OpRollback || as[0].Version != "1" || as[0].Release != release {
		t.Errorf("resumed: %+v %v", as, err)
	}
	if as, err := r.Resumed("disk"); err != nil || len(as) != 0 {
		t.Errorf("resumed of another package: %+v %v", as, err)
	}
	must(t, r.Close())
	if as, err := writer(t, dir, root).Resumed("net"); err != nil || len(as) != 0 {
		t.Errorf("resumed by the next one: %+v %v", as, err)
	}
}

func TestPinsFor(t *testing.T) {
	pins := Pins{
		{Package: "disk", Release: release, Version: "7"},
		{Package: "net", Version: "1"},
		{Package: "net", Release: release, Version: "2"},
	}
	for _, tt := range []struct{ pkg, release, want string }{
		{"net", release, "2"}, {"net", "5.10", "1"}, {"disk", release, "7"}, {"disk", "5.10", ""}, {"other", release, ""},
	} {
		for _, ps := range []Pins{pins, {pins[2], pins[1], pins[0]}} {
			if got, ok := ps.For(tt.pkg, tt.release); got.Version != tt.want || ok != (tt.want != "") {
				t.Errorf("%s on %s: %+v, want %q", tt.pkg, tt.release, got, tt.want)
			}
		}
	}
}
