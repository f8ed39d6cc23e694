package registry

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kmodctl/internal/kernel"
)

// readManifest reads what the tests' sources have for a manifest: "NAME VERSION".
func readManifest(top map[string]string) (text, name, version string, err error) {
	text = top["kmod.toml"]
	if _, err = fmt.Sscan(text, &name, &version); err != nil {
		return "", "", "", errors.New("no manifest")
	}
	return text, name, version, nil
}

// store is a registry with something of everything: net 1 and 2 with sources and logs, net 2 installed
// in place of 1, where it shadows a module of the kernel's.
func store(t *testing.T) (dir, origin string, root kernel.Root) {
	t.Helper()
	root, dir = newRoot(t), t.TempDir()
	inTree := filepath.Join(string(root), modulesPath(release), "kernel/net.ko")
	must(t, os.WriteFile(inTree, mustObject(t, "in-tree"), 0o644))
	r := writer(t, dir, root)
	for _, version := range []string{"1", "2"} {
		manifest := "net " + version
		origin = tree(t, "kmod.toml="+manifest, "a.c=int a;", "sub/gen!=#!/bin/sh", "link->a.c")
		src, _, err := r.AddSource(t.Context(), origin, "net", version, manifest)
		must(t, err)
		log, _, err := r.PutBlob(t.Context(), strings.NewReader("net "+version+" for "+release+"\n"))
		must(t, err)
		attempt, err := r.BeginAttempt(Attempt{Op: OpBuild, Package: "net", Version: version, Release: release, InputHash: strings.Repeat("0", 64), Inputs: []Input{{"source", src.Digest}}})
		must(t, err)
		a := mustPut(t, r, "net", version, "net="+version, "net_extra=x"+version)
		attempt.Outcome, attempt.Log, attempt.Artifact = OutcomeOK, log, a.Digest
		must(t, r.FinishAttempt(attempt))
		_, err = r.Install(t.Context(), release, []Artifact{a}, nil)
		must(t, err)
	}
	must(t, r.SetPin(Pin{Package: "net", Version: "2"}))
	must(t, r.Close())
	return dir, origin, root
}

// drifts lists what verify tells: kind, object, and the file's name or what it is good for.
func drifts(t *testing.T, r *Registry, root kernel.Root) (list []string) {
	t.Helper()
	found, err := r.Verify(t.Context(), root)
	must(t, err)
	for _, d := range found {
		name := filepath.Base(d.Path)
		if d.Object == ObjectBlob && d.Kind != DriftForeign {
			name, _, _ = strings.Cut(d.Why, ";")
		}
		list = append(list, d.Kind+" "+d.Object+" "+name)
	}
	return list
}

func blobsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	r := reader(t, dir)
	needed, err := r.neededBlobs()
	must(t, err)
	byUse := map[string]string{}
	for digest, d := range needed {
		byUse[d.Why] = r.BlobPath(digest)
	}
	return byUse
}

func TestVerifyAndRemedies(t *testing.T) {
	ours := filepath.Join(modulesPath(release), ourDir)
	tests := []struct {
		name   string
		break_ func(t *testing.T, dir, origin, root string, blobs map[string]string)
		want   []string // what verify tells
		after  []string // and after every remedy that the registry has
	}{
		{"nothing", func(*testing.T, string, string, string, map[string]string) {}, nil, nil},
		{"a lost record", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			must(t, os.Remove(blobs["record of net 1 for 9.9.9"]))
		}, []string{"missing blob record of net 1 for 9.9.9"}, nil},
		{"a damaged record", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			flipBit(t, blobs["record of net 2 for 9.9.9"])
		}, []string{"modified blob record of net 2 for 9.9.9"}, nil},
		{"a damaged module that is installed", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			flipBit(t, blobs["net-extra.ko of net 2 for 9.9.9"])
		}, []string{"modified blob net-extra.ko of net 2 for 9.9.9"}, nil},
		{"a damaged module that is nowhere else", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			flipBit(t, blobs["net.ko of net 1 for 9.9.9"])
		}, []string{"modified blob net.ko of net 1 for 9.9.9"}, []string{"modified blob net.ko of net 1 for 9.9.9"}},
		{"a lost source whose folder is there", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			must(t, os.Remove(blobs["source of net 2"]))
		}, []string{"missing blob source of net 2"}, nil},
		{"a damaged source whose folder was changed", func(t *testing.T, _, origin, _ string, blobs map[string]string) {
			must(t, os.WriteFile(filepath.Join(origin, "a.c"), []byte("int b;"), 0o644))
			flipBit(t, blobs["source of net 2"])
		}, []string{"modified blob source of net 2"}, []string{"modified blob source of net 2"}},
		{"a lost log", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			must(t, os.Remove(blobs["log of build 1, of net 1 for 9.9.9"]))
		}, []string{"missing blob log of build 1, of net 1 for 9.9.9"}, nil},
		{"a damaged log", func(t *testing.T, _, _, _ string, blobs map[string]string) {
			flipBit(t, blobs["log of build 1, of net 1 for 9.9.9"])
		}, []string{"modified blob log of build 1, of net 1 for 9.9.9"}, nil},
		{"a damaged blob that nothing needs", func(t *testing.T, dir, _, _ string, _ map[string]string) {
			must(t, os.WriteFile(filepath.Join(dir, blobDir, strings.Repeat("0", 64)), []byte("x"), 0o444))
		}, []string{"modified blob nothing needs it"}, nil},
		{"a folder for a blob", func(t *testing.T, dir, _, _ string, blobs map[string]string) {
			must(t, os.Mkdir(filepath.Join(dir, blobDir, strings.Repeat("0", 64)), 0o755))
		}, []string{"modified blob nothing needs it"}, nil},
		{"a foreign file among the blobs", func(t *testing.T, dir, _, _ string, _ map[string]string) {
			must(t, os.WriteFile(filepath.Join(dir, blobDir, "notes.txt"), nil, 0o644))
		}, []string{"foreign blob notes.txt"}, []string{"foreign blob notes.txt"}},
		{"a README of somebody else's", func(t *testing.T, dir, _, _ string, _ map[string]string) {
			must(t, os.WriteFile(filepath.Join(dir, readmeFile), []byte("x"), 0o644))
		}, []string{"modified readme README"}, nil},
		{"installed files", func(t *testing.T, _, _, root string, _ map[string]string) {
			must(t, os.WriteFile(filepath.Join(root, ours, "mine.ko"), nil, 0o644))
			must(t, os.WriteFile(filepath.Join(root, ours, tempName+"x-old"), nil, 0o644))
			must(t, os.Remove(filepath.Join(root, ours, "net.ko")))
		}, []string{"missing installed net.ko", "foreign installed " + tempName + "x-old", "foreign installed mine.ko"}, []string{"missing installed net.ko", "foreign installed mine.ko"}},
		{"a file changed behind size and mtime", func(t *testing.T, _, _, root string, _ map[string]string) {
			name := filepath.Join(root, ours, "net.ko")
			info, err := os.Stat(name)
			must(t, err)
			flipBit(t, name)
			must(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
		}, []string{"modified installed net.ko"}, []string{"modified installed net.ko"}},
		{"a kernel that was upgraded", func(t *testing.T, _, _, root string, _ map[string]string) {
			must(t, os.WriteFile(filepath.Join(root, modulesPath(release), "modules.order"), []byte("kernel/net.ko\n"), 0o644))
			must(t, os.Rename(filepath.Join(root, modulesPath(release), "kernel/net.ko"), filepath.Join(root, modulesPath(release), "kernel/net.ko.xz")))
		}, []string{"modified kernel 9.9.9", "missing original net.ko"}, nil},
		{"an original that was changed", func(t *testing.T, _, _, root string, _ map[string]string) {
			flipBit(t, filepath.Join(root, modulesPath(release), "kernel/net.ko"))
		}, []string{"modified original net.ko"}, nil},
		{"a kernel that was removed", func(t *testing.T, _, _, root string, _ map[string]string) {
			for _, name := range []string{"kernel", "modules.order", "modules.builtin", "modules.builtin.modinfo"} {
				must(t, os.RemoveAll(filepath.Join(root, modulesPath(release), name)))
			}
		}, []string{"gone kernel 9.9.9"}, nil},
		{"a kernel that was removed with its folder", func(t *testing.T, _, _, root string, _ map[string]string) {
			must(t, os.RemoveAll(filepath.Join(root, modulesPath(release))))
		}, []string{"gone kernel 9.9.9"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, origin, root := store(t)
			tt.break_(t, dir, origin, string(root), blobsOf(t, dir))
			equal(t, "verify", drifts(t, reader(t, dir), root), tt.want)
			r := writer(t, dir, root)
			found, err := r.Verify(t.Context(), root)
			must(t, err)
			for _, d := range found {
				remedy, err := r.Remedy(t.Context(), root, d)
				must(t, err)
				if remedy != nil {
					t.Logf("%s %s: %s", d.Kind, d.Path, remedy.What)
					must(t, remedy.Do())
				}
			}
			equal(t, "verify after the remedies", drifts(t, r, root), tt.after)
		})
	}
}

// A kernel that is gone takes our files with it, and nothing else.
func TestForgetKernel(t *testing.T) {
	dir, _, root := store(t)
	base := filepath.Join(string(root), modulesPath(release))
	must(t, os.WriteFile(filepath.Join(base, ourDir, "mine.ko"), nil, 0o644))
	r := writer(t, dir, root)
	must(t, r.forgetKernel(release))
	names, err := filepath.Glob(filepath.Join(base, ourDir, "*"))
	must(t, err)
	equal(t, "our folder", names, []string{filepath.Join(base, ourDir, "mine.ko")})
	if _, err := os.Stat(filepath.Join(base, "kernel/net.ko")); err != nil || len(mustInstalls(t, r)) > 0 {
		t.Errorf("original: %v, rows %v", err, mustInstalls(t, r))
	}
}

// facts are what a rebuilt registry must still know.
func facts(t *testing.T, r *Registry) (list []string) {
	t.Helper()
	sources, err := r.Sources()
	must(t, err)
	for _, s := range sources {
		list = append(list, fmt.Sprintf("source %s %s %s %d files", s.Name, s.Version, s.Digest, len(s.Files)))
	}
	artifacts, err := r.Artifacts()
	must(t, err)
	for _, a := range artifacts {
		list = append(list, "artifact "+a.Digest)
	}
	for _, i := range mustInstalls(t, r) {
		list = append(list, fmt.Sprint("install ", i.Path, i.Package, i.Version, i.Digest, i.Artifact, i.Size, i.Mtime))
	}
	originals, err := r.Originals()
	must(t, err)
	for _, o := range originals {
		list = append(list, fmt.Sprint("original ", o))
	}
	return list
}

// mustRebuild makes the database anew and opens it for writing.
func mustRebuild(t *testing.T, dir string, root kernel.Root) *Registry {
	t.Helper()
	told, err := Rebuild(t.Context(), dir, root, WriterOptions{Command: "kmodctl repair", Version: "test"}, readManifest)
	must(t, err)
	t.Logf("%q", told)
	return writer(t, dir, root)
}

func TestRebuild(t *testing.T) {
	tests := []struct {
		name    string
		damage  func(t *testing.T, file string)
		history bool // the attempts can be read still
	}{
		{"empty", func(t *testing.T, file string) { must(t, os.Truncate(file, 0)) }, false},
		{"half", func(t *testing.T, file string) { must(t, os.Truncate(file, size(t, file)/2)) }, false},
		{"no database", func(t *testing.T, file string) {
			must(t, os.WriteFile(file, []byte(strings.Repeat("garbage ", 4096)), 0o644))
		}, false},
		{"gone", func(t *testing.T, file string) { must(t, os.Remove(file)) }, false},
		{"a garbled row", func(t *testing.T, file string) {
			execute(t, file, `UPDATE artifact SET record = replace(record, 'net', 'ent') WHERE version = '1'`)
		}, true},
		{"a row that is no JSON", func(t *testing.T, file string) { execute(t, file, `UPDATE source SET files = '{' WHERE version = '2'`) }, true},
		{"an intent that is no JSON", func(t *testing.T, file string) { execute(t, file, `INSERT INTO intent VALUES ('9.9.9', 0, 'x')`) }, true},
		{"an install of nothing", func(t *testing.T, file string) {
			execute(t, file, `UPDATE install SET artifact = 'x' WHERE module = 'net'`)
		}, true},
		{"a module in the wrong place", func(t *testing.T, file string) {
			execute(t, file, `UPDATE install SET path = '/lib/modules/9.9.9/updates/kmodctl/net2.ko' WHERE module = 'net'`)
		}, true},
		{"lost rows", func(t *testing.T, file string) { execute(t, file, `DELETE FROM install; DELETE FROM original`) }, true},
		{"lost tables", func(t *testing.T, file string) { execute(t, file, `DROP TABLE install; DROP TABLE artifact`) }, true},
		{"no schema", func(t *testing.T, file string) { execute(t, file, `DELETE FROM meta`) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, _, root := store(t)
			before := facts(t, reader(t, dir))
			tt.damage(t, filepath.Join(dir, dbFile))
			r, err := Open(t.Context(), dir)
			if err == nil {
				defer r.Close()
				found, err := r.Verify(t.Context(), root)
				must(t, err)
				if len(found) == 0 || found[0].Object != ObjectDatabase {
					t.Fatalf("verify: %+v", found)
				}
			} else if !isDamaged(err) {
				t.Fatalf("open: %v", err)
			}
			w := mustRebuild(t, dir, root)
			equal(t, "facts", facts(t, w), before)
			equal(t, "verify", drifts(t, w, root), nil)
			attempts, err := w.Attempts("net", release, 0)
			must(t, err)
			pins, err := w.Pins()
			must(t, err)
			if tt.history && (len(attempts) != 4 || len(pins) != 1) {
				t.Errorf("attempts %+v, pins %+v", attempts, pins)
			}
			kept, err := filepath.Glob(filepath.Join(dir, dbFile+".damaged-*Z"))
			if err != nil || (len(kept) == 1) != (tt.name != "gone") {
				t.Errorf("kept: %q %v", kept, err)
			}
			installed(t, w, root)
		})
	}
}

// execute changes a database as no kmodctl does.
func execute(t *testing.T, file, query string) {
	t.Helper()
	db := connect(file, "rw")
	_, err := db.Exec("PRAGMA foreign_keys = 0; " + query)
	must(t, errors.Join(err, db.Close()))
}

// Commits that are lost with the log leave rows of a time before the files: what is installed
// whole stays, and what a change had only begun with is taken back.
func TestRebuildWithOldRows(t *testing.T) {
	tests := []struct {
		name      string
		old, gone []string // files that are as they were before net 3, and that are not there
		want      []string
	}{
		{"a whole upgrade", nil, nil, []string{"net=3", "net_new=3"}},
		{"the old module has not gone", []string{"net-extra.ko"}, nil, []string{"net=3", "net_new=3"}},
		{"the new module has not come", []string{"net-extra.ko"}, []string{"net-new.ko"}, []string{"net=2", "net_extra=2"}},
		{"only the new module has come", []string{"net-extra.ko", "net.ko"}, nil, []string{"net=2", "net_extra=2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, _, root := store(t)
			blobs := blobsOf(t, dir)
			before, err := os.ReadFile(filepath.Join(dir, dbFile))
			must(t, err)
			w := writer(t, dir, root)
			_, err = w.Install(t.Context(), release, []Artifact{mustPut(t, w, "net", "3", "net=3", "net_new=x3")}, nil)
			must(t, errors.Join(err, w.Close()))
			for _, suffix := range dbSuffixes {
				must(t, os.Remove(filepath.Join(dir, dbFile+suffix)))
			}
			must(t, os.WriteFile(filepath.Join(dir, dbFile), before, 0o644))
			ours := filepath.Join(string(root), modulesPath(release), ourDir)
			for _, file := range tt.old {
				text, err := os.ReadFile(blobs[file+" of net 2 for "+release])
				must(t, errors.Join(err, os.WriteFile(filepath.Join(ours, file), text, 0o644)))
			}
			for _, file := range tt.gone {
				must(t, os.Remove(filepath.Join(ours, file)))
			}
			w = mustRebuild(t, dir, root)
			equal(t, "installed", installed(t, w, root), tt.want)
			equal(t, "verify", drifts(t, w, root), nil)
		})
	}
}

// A source that was added again is the one whose archive is there, whatever an old row says.
func TestRebuildWithOldSource(t *testing.T) {
	dir, _, root := store(t)
	before, err := os.ReadFile(filepath.Join(dir, dbFile))
	must(t, err)
	w := writer(t, dir, root)
	added, _, err := w.AddSource(t.Context(), tree(t, "kmod.toml=net 2", "a.c=int b;"), "net", "2", "net 2")
	must(t, errors.Join(err, w.Close()))
	must(t, os.WriteFile(filepath.Join(dir, dbFile), before, 0o644))
	w = mustRebuild(t, dir, root)
	if now, err := w.Source("net", "2"); err != nil || now.Digest != added.Digest {
		t.Errorf("source %s, %v; want %s", now.Digest, err, added.Digest)
	}
	equal(t, "verify", drifts(t, w, root), nil)
}

// SQLite takes a log whose head is damaged for an empty one. Nobody goes on without what was committed, and a
// rebuild finds what was installed.
func TestLogWithoutHead(t *testing.T) {
	dir, _, root := store(t)
	w := writer(t, dir, root)
	_, err := w.Install(t.Context(), release, []Artifact{mustPut(t, w, "net", "3", "net=3")}, nil)
	must(t, err)
	killed := t.TempDir()
	must(t, os.CopyFS(killed, os.DirFS(dir)))
	equal(t, "installed", installed(t, reader(t, killed), root), []string{"net=3"})
	f, err := os.OpenFile(filepath.Join(killed, dbFile+"-wal"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("noise"), 8)
	must(t, errors.Join(err, f.Close()))
	if _, err := Open(t.Context(), killed); !isDamaged(err) {
		t.Errorf("a reader: %v", err)
	}
	if _, err := OpenWriter(t.Context(), killed, root, WriterOptions{}); !isDamaged(err) {
		t.Errorf("a writer: %v", err)
	}
	w = mustRebuild(t, killed, root)
	equal(t, "installed", installed(t, w, root), []string{"net=3"})
	equal(t, "verify", drifts(t, w, root), nil)
}

// A pin of a build that is lost becomes one of its version: it would hold back every
// other build for good.
func TestRebuildPins(t *testing.T) {
	dir, _, root := store(t)
	lost := strings.Repeat("0", digestSize)
	execute(t, filepath.Join(dir, dbFile), `UPDATE pin SET artifact = '`+lost+`'`)
	pins, err := mustRebuild(t, dir, root).Pins()
	must(t, err)
	if len(pins) != 1 || pins[0].Artifact != "" {
		t.Errorf("pins: %+v", pins)
	}
}

// A rebuild that is killed while it changes files is done again from the same rows, those of the log too.
func TestRebuildCutOff(t *testing.T) {
	dir, _, root := store(t)
	before := facts(t, reader(t, dir))
	execute(t, filepath.Join(dir, dbFile), `DELETE FROM meta`)
	r, err := claim(t.Context(), dir, root, WriterOptions{Command: "kmodctl repair"})
	must(t, err)
	_, err = r.setAside()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, dbFile+"-wal"), nil, 0o644)) // the new one has come
	must(t, r.Close())
	if _, err := Open(t.Context(), dir); !isDamaged(err) { // whatever was wrong with it
		t.Errorf("open: %v", err)
	}
	w := mustRebuild(t, dir, root)
	equal(t, "facts", facts(t, w), before)
	kept, err := filepath.Glob(filepath.Join(dir, dbFile+".damaged-*Z"))
	if err != nil || len(kept) != 1 {
		t.Errorf("kept: %q %v", kept, err)
	}
}

// Nothing touches the database of a newer kmodctl.
func TestRebuildRefusesTheFuture(t *testing.T) {
	dir, _, root := store(t)
	execute(t, filepath.Join(dir, dbFile), `UPDATE meta SET value = '7' WHERE key = 'schema'; DROP TABLE install`)
	before := snapshot(t, filepath.Join(dir, blobDir))
	text, err := os.ReadFile(filepath.Join(dir, dbFile))
	must(t, err)
	var newer *SchemaError
	if _, err := Rebuild(t.Context(), dir, root, WriterOptions{}, readManifest); !errors.As(err, &newer) || newer.Schema != "7" {
		t.Errorf("error: %v", err)
	}
	now, err := os.ReadFile(filepath.Join(dir, dbFile))
	if err != nil || !slices.Equal(now, text) || snapshot(t, filepath.Join(dir, blobDir)) != before {
		t.Errorf("it was changed: %v", err)
	}
}

// A clock that was set back keeps nothing from working: rows may be of the future.
func TestClockSetBack(t *testing.T) {
	dir, _, root := store(t)
	r := writer(t, dir, root)
	must(t, r.write(func(tx *sql.Tx) error {
		_, err := tx.Exec(`UPDATE attempt SET started = started + ?1; UPDATE install SET at = at + ?1; UPDATE source SET added = added + ?1; UPDATE pin SET at = at + ?1`, int64(100*365*24*time.Hour))
		return err
	}))
	equal(t, "verify", drifts(t, r, root), nil)
	a := mustPut(t, r, "net", "2", "net=3")
	_, err := r.Install(t.Context(), release, []Artifact{a}, nil)
	must(t, err)
	attempts, err := r.Attempts("net", release, 1)
	must(t, err)
	if now, ok, err := r.Artifact("net", "2", release); err != nil || !ok || now.Digest != a.Digest || attempts[0].Op != OpInstall || attempts[0].Artifact != a.Digest {
		t.Errorf("newest: %+v, %+v, %v", now, attempts, err)
	}
	if _, err := r.CollectGarbage(t.Context(), time.Now(), 30*24*time.Hour); err != nil {
		t.Error(err)
	}
	if _, ok, err := r.ArtifactByDigest(a.Digest); err != nil || !ok {
		t.Errorf("gc took what is installed: %v", err)
	}
	equal(t, "verify", drifts(t, r, root), nil)
}
