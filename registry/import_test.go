package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// anyJudge likes every manifest and module.
var anyJudge = Judge{
	Manifests: []string{"kmod.toml"},
	Source:    func(string, string, string, string) error { return nil },
	Module:    func(Artifact, Module, string) error { return nil },
}

func init() {
	// Imports an archive and removes what it brought, without end.
	helpers["import"] = func(args []string) error {
		text, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		for {
			r, err := OpenWriter(context.Background(), args[0], "/", WriterOptions{Command: "kmodctl import"})
			if err != nil {
				return err
			}
			_, err = r.Import(context.Background(), bytes.NewReader(text), anyJudge, false)
			if err := errors.Join(err, r.RemoveSource("net", "1"), r.Close()); err != nil {
				return err
			}
		}
	}
}

// Wherever an import is killed, the package is here and whole, or not here at all.
func TestImportKilled(t *testing.T) {
	from, src, as := exporter(t)
	text := exported(t, from, src, as)
	file, dir := filepath.Join(t.TempDir(), "net.tar"), t.TempDir()
	must(t, os.WriteFile(file, text, 0o644))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice, here := rand.New(rand.NewPCG(seed, 0)), 0
	for i := range 20 {
		cmd := helper("import", dir, file)
		must(t, cmd.Start())
		time.Sleep(time.Duration(dice.IntN(200)) * time.Millisecond)
		must(t, cmd.Process.Kill())
		cmd.Wait()
		r, err := OpenWriter(t.Context(), dir, "/", WriterOptions{Command: "kmodctl test"})
		must(t, err)
		all, err := r.Artifacts()
		must(t, err)
		if got, err := r.Source("net", "1"); err == nil {
			here++
			if !bytes.Equal(text, exported(t, r, got, all)) {
				t.Errorf("kill %d: the package is not whole", i)
			}
		} else if len(all) > 0 {
			t.Errorf("kill %d: artifacts without a source: %+v", i, all)
		}
		blobs(t, r) // and no work folder
		must(t, r.Close())
	}
	t.Logf("after %d of 20 kills it was here", here)
	r := writer(t, dir, "/")
	importInto(t, r, text)
	must(t, r.RemoveSource("net", "1"))
	if names := blobs(t, r); len(names) > 0 {
		t.Errorf("blobs left: %q", names)
	}
}

// exporter is a registry that has net@1 with artifacts for two releases and logs.
func exporter(t testing.TB) (*Registry, Source, []Artifact) {
	t.Helper()
	r, err := OpenWriter(t.Context(), t.TempDir(), "/", WriterOptions{Command: "kmodctl test", Version: "0.0-test"})
	must(t, err)
	t.Cleanup(func() { r.Close() })
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "kmod.toml"), []byte("net"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "net.c"), []byte("int net;"), 0o644))
	must(t, os.Symlink("net.c", filepath.Join(dir, "same.c")))
	src, _, err := r.AddSource(t.Context(), dir, "net", "1", "net")
	must(t, err)
	return r, src, []Artifact{putFor(t, r, "9.9.9", "a", time.Unix(1e9, 5)), putFor(t, r, "8.8.8", "b", time.Unix(2e9, 0))}
}

// putFor stores an artifact of net@1 for a release, with a log.
func putFor(t testing.TB, r *Registry, release, mark string, built time.Time) Artifact {
	t.Helper()
	file := filepath.Join(t.TempDir(), "net.ko")
	must(t, os.WriteFile(file, []byte("module "+mark), 0o644))
	log, _, err := r.PutBlob(t.Context(), strings.NewReader("log "+mark))
	must(t, err)
	a, err := r.PutArtifact(t.Context(), Artifact{Package: "net", Version: "1", Release: release, InputHash: mark, Log: log,
		Modules: []Module{{Name: "net", File: "net.ko"}}, Built: built, Seconds: 1.5, Compiler: "gcc <12> & co"}, map[string]string{"net": file})
	must(t, err)
	return a
}

func exported(t testing.TB, r *Registry, src Source, as []Artifact) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, r.Export(t.Context(), src, as, &b))
	return b.Bytes()
}

func importInto(t testing.TB, r *Registry, text []byte) Imported {
	t.Helper()
	out, err := r.Import(t.Context(), bytes.NewReader(text), anyJudge, false)
	must(t, err)
	return out
}

// blobs lists the blobs' folder, and makes sure that no work folder is left.
func blobs(t testing.TB, r *Registry) []string {
	t.Helper()
	work, err := readNames(r.tree, workDir)
	must(t, err)
	if len(work) > 0 {
		t.Errorf("work folders left: %q", work)
	}
	names, err := readNames(r.tree, blobDir)
	must(t, err)
	slices.Sort(names)
	return names
}

// What comes out of one registry goes into another and comes out of it again, the
// same to the last byte; tar and sha256sum alone can check it.
func TestExportImport(t *testing.T) {
	r, src, as := exporter(t)
	text := exported(t, r, src, as)
	slices.Reverse(as)
	if !bytes.Equal(text, exported(t, r, src, as)) {
		t.Error("the order of the artifacts shows")
	}

	to := writer(t, t.TempDir(), "/")
	dry, err := to.Import(t.Context(), bytes.NewReader(text), anyJudge, true)
	must(t, err)
	if names := blobs(t, to); len(names) > 0 {
		t.Errorf("a dry run left %q", names)
	}
	out := importInto(t, to, text)
	if want := fmt.Sprint(dry); fmt.Sprint(out) != want || out.Action != ImportNew || len(out.Artifacts) != 2 {
		t.Errorf("imported %+v, the dry run said %s", out, want)
	}
	equal(t, "blobs", blobs(t, to), blobs(t, r))
	got, err := to.Source("net", "1")
	must(t, err)
	if got.Manifest != "net" || got.Origin != "" || fmt.Sprint(got.Files) != fmt.Sprint(src.Files) {
		t.Errorf("source: %+v", got)
	}
	all, err := to.Artifacts()
	must(t, err)
	if !bytes.Equal(text, exported(t, to, got, all)) {
		t.Error("exported again, it is another archive")
	}
	must(t, to.Extract(got, t.TempDir()))

	again := importInto(t, to, text)
	if again.Action != ImportCurrent || again.Mended != 0 || again.changesRows() {
		t.Errorf("imported again: %+v", again)
	}
	flipBit(t, to.BlobPath(all[0].Modules[0].Digest))
	must(t, os.Remove(to.BlobPath(src.Digest)))
	if mended := importInto(t, to, text); mended.Mended != 2 {
		t.Errorf("mended %d blobs, want 2", mended.Mended)
	}
	if !bytes.Equal(text, exported(t, to, got, all)) {
		t.Error("mended, it is another archive")
	}
}

func TestExportIsCheckedByTools(t *testing.T) {
	r, src, as := exporter(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "net.tar"), exported(t, r, src, as), 0o644))
	script := `tar xf net.tar && cd net-1 && sha256sum --strict -c SHA256SUMS && cd .. && tar cf again.tar net-1 && tar --format=pax -cf pax.tar net-1`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	listed, err := exec.Command("tar", "tvf", filepath.Join(dir, "net.tar")).Output()
	must(t, err)
	for line := range strings.Lines(string(listed)) {
		if !strings.HasPrefix(line, "-rw-r--r-- 0/0 ") || !strings.Contains(line, " 1970-01-01 ") {
			t.Errorf("entry of its machine: %s", line)
		}
	}
	// Packed again by tar, in another order and with folders, it is as good.
	for _, name := range []string{"again.tar", "pax.tar"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if out := importInto(t, writer(t, t.TempDir(), "/"), text); len(out.Artifacts) != 2 {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

func TestExportDamaged(t *testing.T) {
	r, src, as := exporter(t)
	must(t, os.Remove(r.BlobPath(as[0].Log))) // gc may have dropped it
	text := exported(t, r, src, as)
	to := writer(t, t.TempDir(), "/")
	importInto(t, to, text)
	all, err := to.Artifacts()
	must(t, err)
	if !bytes.Equal(text, exported(t, to, src, all)) {
		t.Error("without a log, the other registry exports another archive")
	}
	flipBit(t, r.BlobPath(as[1].Modules[0].Digest))
	var damaged *CorruptError
	if err := r.Export(t.Context(), src, as, io.Discard); !errors.As(err, &damaged) || !strings.HasSuffix(damaged.Path, as[1].Modules[0].Digest) {
		t.Errorf("a damaged blob: %v", err)
	}
	must(t, os.Remove(r.BlobPath(src.Digest)))
	if err := r.Export(t.Context(), src, nil, io.Discard); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), src.Digest) {
		t.Errorf("a missing blob: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Export(ctx, src, nil, io.Discard); err == nil {
		t.Error("cancelled, it went on")
	}
}

// What is installed must not change in the night because of an import.
func TestImportBesideOthers(t *testing.T) {
	from, src, as := exporter(t)
	old := exported(t, from, src, as)
	newer := putFor(t, from, "9.9.9", "c", time.Unix(3e9, 0))
	fresh := exported(t, from, src, []Artifact{newer, as[1]})

	to, _, _ := exporter(t)
	mine := putFor(t, to, "9.9.9", "mine", time.Unix(1e8, 0)) // older by its clock
	theirs := writer(t, t.TempDir(), "/")
	importInto(t, theirs, old)
	for _, tt := range []struct {
		what         string
		r            *Registry
		text         []byte
		actions      string
		newest, next string
	}{
		{"built here", to, fresh, "current skip", mine.Digest, as[1].Digest},
		{"imported, older", theirs, fresh, "current import", newer.Digest, as[1].Digest},
		{"imported, newer", theirs, old, "current current", newer.Digest, as[1].Digest},
	} {
		var actions []string
		for _, a := range importInto(t, tt.r, tt.text).Artifacts {
			actions = append(actions, a.Action)
		}
		if got := strings.Join(actions, " "); got != tt.actions {
			t.Errorf("%s: %s, want %s", tt.what, got, tt.actions)
		}
		for release, want := range map[string]string{"9.9.9": tt.newest, "8.8.8": tt.next} {
			if a, _, err := tt.r.Artifact("net", "1", release); err != nil || a.Digest != want {
				t.Errorf("%s: newest for %s is %s, want %s (%v)", tt.what, release, a.Digest, want, err)
			}
		}
	}
	// A third machine's, neither known here nor newer.
	other := exported(t, to, src, []Artifact{mine})
	if out := importInto(t, theirs, other); out.Artifacts[0].Action != ImportSkip {
		t.Errorf("an older one: %+v", out)
	}
	if slices.Contains(blobs(t, theirs), mine.Digest) {
		t.Error("the blobs of what was passed over are kept")
	}

	// The same name and version, another source.
	stranger := writer(t, t.TempDir(), "/")
	_, _, err := stranger.AddSource(t.Context(), tree(t, "kmod.toml=other"), "net", "1", "other")
	must(t, err)
	before := blobs(t, stranger)
	var exists *ExistsError
	if _, err := stranger.Import(t.Context(), bytes.NewReader(old), anyJudge, false); !errors.As(err, &exists) {
		t.Errorf("another source: %v", err)
	}
	equal(t, "blobs", blobs(t, stranger), before)
}

// entry is one entry of a forged archive.
type entry struct {
	tar.Header
	text string
}

// unpacked lists the entries of an archive.
func unpacked(t testing.TB, text []byte) (all []entry) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		must(t, err)
		body, err := io.ReadAll(tr)
		must(t, err)
		all = append(all, entry{*h, string(body)})
	}
}

func packed(t testing.TB, all []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range all {
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.text))
		}
		must(t, tw.WriteHeader(&e.Header))
		_, err := tw.Write([]byte(e.text))
		must(t, err)
	}
	must(t, tw.Close())
	return b.Bytes()
}

// file is an entry of the forged archive net-1.
func file(name, text string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: "net-1/" + name, Mode: 0o644}, text}
}

// forge is an archive with right sums of these blobs, whose package.json is changed.
func forge(t testing.TB, source string, records []string, blobs []string, change func(*parcel)) []byte {
	t.Helper()
	p := parcel{parcelSchema, "net", "1", hexOf([]byte(source)), []string{}}
	all := append(append([]string{source}, records...), blobs...)
	for _, r := range records {
		p.Artifacts = append(p.Artifacts, hexOf([]byte(r)))
	}
	slices.Sort(p.Artifacts)
	if change != nil {
		change(&p)
	}
	text, err := p.text()
	must(t, err)
	var digests []string
	var entries []entry
	for _, b := range all {
		digests = append(digests, hexOf([]byte(b)))
		entries = append(entries, file(blobName(hexOf([]byte(b))), b))
	}
	return packed(t, append(entries, file(packageFile, string(text)), file(sumsFile, string(sums(digests, text)))))
}

// sourceTar is the archive of a source that has these entries and a manifest.
func sourceTar(t testing.TB, all ...entry) string {
	t.Helper()
	for i := range all {
		all[i].Format = tar.FormatPAX
	}
	return string(packed(t, append(all, entry{tar.Header{Typeflag: tar.TypeReg, Name: "kmod.toml", Mode: 0o644, Format: tar.FormatPAX}, "net"})))
}

func named(kind byte, name, link string) entry {
	mode := int64(0o644)
	if kind == tar.TypeSymlink {
		mode = 0o777
	}
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: mode}, ""}
}

// recordOf is a record of net@1 whose module is ko, changed.
func recordOf(t testing.TB, ko string, change func(*record)) string {
	t.Helper()
	rec := record{recordSchema, Artifact{Package: "net", Version: "1", Release: "9.9.9", InputHash: "x", Built: time.Unix(1e9, 0).UTC(),
		Modules: []Module{{Name: "net", File: "net.ko", Digest: hexOf([]byte(ko)), Size: int64(len(ko))}}}}
	if change != nil {
		change(&rec)
	}
	text, err := json.Marshal(rec)
	must(t, err)
	return string(text)
}

// hostile are archives that must be refused, with what their error says.
func hostile(t testing.TB) map[string]struct {
	text []byte
	want string
} {
	r, src, as := exporter(t)
	good := exported(t, r, src, as)
	type refusal = struct {
		text []byte
		want string
	}
	all := map[string]refusal{}
	// with appends entries; change replaces one.
	with := func(what, want string, extra ...entry) {
		all[what] = refusal{packed(t, append(unpacked(t, good), extra...)), want}
	}
	change := func(what, want string, f func(all []entry) []entry) {
		all[what] = refusal{packed(t, f(unpacked(t, good))), want}
	}
	ofKind := func(kind byte, name, link string) entry {
		return entry{tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o644}, ""}
	}
	other := blobName(strings.Repeat("0", 64))
	with("symbolic link", "net-1/"+other+": is a symbolic link", ofKind(tar.TypeSymlink, "net-1/"+other, "/etc/passwd"))
	with("hard link", "net-1/"+other+": is a hard link", ofKind(tar.TypeLink, "net-1/"+other, "net-1/package.json"))
	with("device", "is a device", ofKind(tar.TypeChar, "net-1/"+other, ""))
	with("block device", "is a device", ofKind(tar.TypeBlock, "net-1/"+other, ""))
	with("pipe", "is a pipe", ofKind(tar.TypeFifo, "net-1/"+other, ""))
	with("folder", "net-1/sub/: is a folder", ofKind(tar.TypeDir, "net-1/sub/", ""))
	with("folder named as a blob", other+"/: is a folder", ofKind(tar.TypeDir, "net-1/"+other+"/", ""))
	with("absolute", "/net-1/x: is not in one folder", ofKind(tar.TypeReg, "/net-1/x", ""))
	with("up", "../x: is not in one folder", ofKind(tar.TypeReg, "../x", ""))
	with("up inside", "net-1/../x: is not a file that an archive has", file("../x", ""))
	with("up to a blob", "is not a file that an archive has", file("blobs/../blobs/sha256/"+strings.Repeat("0", 64), ""))
	with("unknown", "net-1/README: is not a file that an archive has", file("README", ""))
	with("another folder", "net-2/package.json: is not in one folder", ofKind(tar.TypeReg, "net-2/package.json", ""))
	with("terminal", `"net-1/\x1b[2J": is not a file`, file("\x1b[2J", ""))
	with("upper case", "is not a file that an archive has", file(blobDir+"/"+strings.Repeat("A", 64), ""))
	with("twice", "net-1/package.json: comes twice", file(packageFile, "{}"))
	with("global header", "is a global PAX header", entry{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "net-1/x", PAXRecords: map[string]string{"path": "net-1/x"}}, ""})
	with("other content", "net-1/"+other+": its sha256 is ", file(other, "content"))
	with("not listed", "is not in SHA256SUMS", file(blobName(hexOf([]byte("content"))), "content"))
	change("missing sums", "net-1/SHA256SUMS: is missing", func(all []entry) []entry { return all[1:] })
	change("missing package", "net-1/package.json: is in SHA256SUMS, but not in the archive", func(all []entry) []entry { return slices.Delete(all, 1, 2) })
	change("missing blob", ": is in SHA256SUMS, but not in the archive", func(all []entry) []entry { return all[:len(all)-1] })
	change("other sum", "net-1/package.json: its sha256 is ", func(all []entry) []entry {
		all[0].text = strings.Replace(all[0].text, hexOf([]byte(all[1].text)), strings.Repeat("0", 64), 1)
		return all
	})
	change("bad line", `SHA256SUMS: has the line "\x1b"`, func(all []entry) []entry { all[0].text += "\x1b"; return all })
	change("listed twice", "or twice", func(all []entry) []entry { all[0].text += strings.SplitAfter(all[0].text, "\n")[0]; return all })
	second := bytes.Index(good, []byte("net-1/package.json"))
	all["cut off"] = refusal{good[:second+512+5], "net-1/package.json: unexpected EOF"}
	all["cut in a header"] = refusal{good[:second+100], "after net-1/SHA256SUMS: unexpected EOF"}
	all["no archive"] = refusal{[]byte(strings.Repeat("no archive", 200)), "its beginning: this is not how a tar archive begins"}
	all["empty"] = refusal{nil, "its beginning: this is not how a tar archive begins"}
	all["something behind"] = refusal{append(slices.Clone(good), 'x'), "its end: something follows it"}
	all["much behind"] = refusal{append(slices.Clone(good), make([]byte, maxPadding+1)...), "its end: something follows it"}

	// Sizes are believed before content comes.
	huge := func(name string, size int64) []byte {
		var b bytes.Buffer
		must(t, tar.NewWriter(&b).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "net-1/" + name, Size: size}))
		return b.Bytes()
	}
	all["huge blob"] = refusal{huge(other, maxBlob+1), "net-1/" + other + ": it has 1073741825 bytes"}
	all["huge sums"] = refusal{huge(sumsFile, maxSmall+1), "net-1/SHA256SUMS: it has 16777217 bytes"}
	all["huge package"] = refusal{huge(packageFile, maxSmall+1), "net-1/package.json: it has 16777217 bytes"}
	all["huge archive"] = refusal{huge(other, maxArchive+1), "the archive is too big"}
	old := []byte(string(huge(other, 512))) // GNU's old way to say that a file has holes
	old[156] = 'S'
	copy(old[257:], "ustar  \x00")
	rechecksum(old)
	all["old holes"] = refusal{old, "is a file with holes"}
	all["holes"] = refusal{sparse(t, "net-1/"+other), "is a file with holes"}

	ko := "module"
	source := sourceTar(t)
	forged := func(what, want string, source string, records, blobs []string, change func(*parcel)) {
		all[what] = refusal{forge(t, source, records, blobs, change), want}
	}
	forged("newer", "package.json: it has schema 2, this kmodctl knows 1", source, nil, nil, func(p *parcel) { p.Schema = 2 })
	forged("other name", "package.json: is of nut@1", source, nil, nil, func(p *parcel) { p.Name = "nut" })
	forged("no name", "package.json: is of ", source, nil, nil, func(p *parcel) { p.Name, p.Version = "", "net-1" })
	forged("no source", "names 00", source, nil, nil, func(p *parcel) { p.Source = strings.Repeat("0", 64) })
	forged("artifacts null", "is not as kmodctl writes it", source, nil, nil, func(p *parcel) { p.Artifacts = nil })
	forged("odd artifact", "names ../../x, which is not", source, nil, nil, func(p *parcel) { p.Artifacts = []string{"../../x"} })
	forged("stray blob", "belongs to nothing", source, nil, []string{"stray"}, nil)
	forged("two for one release", "a second artifact for 9.9.9", source, []string{recordOf(t, ko, nil), recordOf(t, ko, func(r *record) { r.InputHash = "y" })}, []string{ko}, nil)
	for what, c := range map[string]struct {
		want   string
		change func(*record)
	}{
		"record: newer":         {"no record of schema 1", func(r *record) { r.Schema = 2 }},
		"record: other package": {"a record of nut@1", func(r *record) { r.Package = "nut" }},
		"record: other version": {"a record of net@2", func(r *record) { r.Version = "2" }},
		"record: release":       {`"../../../etc" is not a kernel release`, func(r *record) { r.Release = "../../../etc" }},
		"record: own digest":    {"not as kmodctl writes it", func(r *record) { r.Digest = strings.Repeat("0", 64) }},
		"record: no modules":    {"without modules", func(r *record) { r.Modules = nil }},
		"record: file":          {`"../net.ko" is not the name of a .ko file`, func(r *record) { r.Modules[0].File = "../net.ko" }},
		"record: module name":   {"of a module of another name", func(r *record) { r.Modules[0].Name = "nut" }},
		"record: size":          {"its file has 6 bytes", func(r *record) { r.Modules[0].Size++ }},
		"record: digest":        {"is not a sha256", func(r *record) { r.Modules[0].Digest = "../x" }},
		"record: other digest":  {"is not in the archive", func(r *record) { r.Modules[0].Digest = strings.Repeat("0", 64) }},
		"record: twice":         {"is named twice", func(r *record) { r.Modules = append(r.Modules, r.Modules[0]) }},
		"record: log":           {"is not a sha256", func(r *record) { r.Log = "../x" }},
	} {
		forged(what, c.want, source, []string{recordOf(t, ko, c.change)}, []string{ko}, nil)
	}
	plain := recordOf(t, ko, nil)
	forged("record: key twice", "not as kmodctl writes it", source, []string{strings.Replace(plain, `"package"`, `"log":"x","log":"","package"`, 1)}, []string{ko}, nil)
	forged("record: no JSON", "read record", source, []string{"no JSON"}, []string{ko}, nil)

	for what, c := range map[string]struct{ source, want string }{
		"source: no archive":    {"no archive", "unexpected EOF"},
		"source: up":            {sourceTar(t, named(tar.TypeReg, "../x", "")), "../x: is not a plain path"},
		"source: absolute":      {sourceTar(t, named(tar.TypeReg, "/etc/x", "")), "/etc/x: is not a plain path"},
		"source: not clean":     {sourceTar(t, named(tar.TypeReg, "a//b", "")), "a//b: is not a plain path"},
		"source: link out":      {sourceTar(t, named(tar.TypeSymlink, "etc", "/etc/passwd")), "link etc leads out of the source: /etc/passwd"},
		"source: links out":     {sourceTar(t, named(tar.TypeSymlink, "a/b/l", "top/../x"), named(tar.TypeSymlink, "a/b/top", "../..")), "link a/b/l leads out"},
		"source: links round":   {sourceTar(t, named(tar.TypeSymlink, "a", "b"), named(tar.TypeSymlink, "b", "a")), "link a leads out"},
		"source: below a link":  {sourceTar(t, named(tar.TypeSymlink, "a", "b"), named(tar.TypeReg, "a/x", "")), "a/x: is below a, which is no folder"},
		"source: below a file":  {sourceTar(t, named(tar.TypeReg, "a", ""), named(tar.TypeReg, "a-b", ""), named(tar.TypeReg, "a/x/y", "")), "a/x/y: is below a,"},
		"source: twice":         {sourceTar(t, named(tar.TypeReg, "a", ""), named(tar.TypeReg, "a", "")), "a: comes twice or out of order"},
		"source: out of order":  {sourceTar(t, named(tar.TypeReg, "b", ""), named(tar.TypeReg, "a", "")), "a: comes twice or out of order"},
		"source: hard link":     {sourceTar(t, named(tar.TypeLink, "a", "/etc/passwd")), "a: is of a kind that sources do not have: a hard link"},
		"source: device":        {sourceTar(t, named(tar.TypeChar, "a", "")), "a: is of a kind that sources do not have: a device"},
		"source: folder":        {sourceTar(t, named(tar.TypeDir, "a/", "")), "a/: is of a kind that sources do not have: a folder"},
		"source: holes":         {string(sparse(t, "a")), "a: is of a kind that sources do not have: a file with holes"},
		"source: setuid":        {sourceTar(t, entry{tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o4755}, ""}), "a: has mode 04755"},
		"source: owner":         {sourceTar(t, entry{tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, Uid: 1}, ""}), "not as kmodctl writes it"},
		"source: something":     {source + "behind", "not as kmodctl writes it"},
		"source: long path":     {sourceTar(t, named(tar.TypeReg, strings.Repeat("a/", 2048)+"b", "")), "is longer than 4096 bytes"},
		"source: huge file":     {string(huge("x", maxSourceFile+1)), "is too big for a source file"},
		"source: no manifest":   {string(packed(t, []entry{{tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, Format: tar.FormatPAX}, ""}})), "no kmod.toml is in the source"},
		"source: huge manifest": {string(packed(t, []entry{{tar.Header{Typeflag: tar.TypeReg, Name: "kmod.toml", Mode: 0o644, Format: tar.FormatPAX}, strings.Repeat("#", maxManifest+1)}})), "kmod.toml is too big"},
	} {
		forged(what, c.want, c.source, nil, nil, nil)
	}
	return all
}

// rechecksum puts a header's checksum right.
func rechecksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block[:512] {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// sparse is an archive whose one file says to have a terabyte, all of it holes, in
// GNU's way 1.0. archive/tar reads it and does not write it.
func sparse(t testing.TB, name string) []byte {
	t.Helper()
	record := func(key, value string) string {
		n := len(key) + len(value) + len("100 =\n") // with its own length, of which zeros are allowed
		return fmt.Sprintf("%03d %s=%s\n", n, key, value)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "1099511627776")
	pax += record("GNU.sparse.name", name)
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	must(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "pax", Size: int64(len(pax))}))
	_, err := tw.Write([]byte(pax))
	must(t, err)
	must(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 512}))
	_, err = tw.Write(append([]byte("1\n1099511627776\n0\n"), make([]byte, 494)...))
	must(t, err)
	must(t, tw.Close())
	text := b.Bytes()
	text[156] = tar.TypeXHeader
	rechecksum(text)
	return text
}

// Nothing of an archive that is refused is left, and its error names the entry.
func TestImportRefuses(t *testing.T) {
	r := writer(t, t.TempDir(), "/")
	for what, c := range hostile(t) {
		_, err := r.Import(t.Context(), bytes.NewReader(c.text), anyJudge, false)
		var bad *ArchiveError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", what, err, c.want)
		}
		srcs, err := r.Sources()
		must(t, err)
		kernels, err := r.Kernels()
		must(t, err)
		if names := blobs(t, r); len(names)+len(srcs)+len(kernels) > 0 {
			t.Fatalf("%s left %q %+v %+v", what, names, srcs, kernels)
		}
	}
}

// The caller's word counts, and a reader takes nothing in.
func TestImportJudged(t *testing.T) {
	from, src, as := exporter(t)
	text := exported(t, from, src, as)
	r := writer(t, t.TempDir(), "/")
	no := errors.New("no")
	for _, change := range []func(*Judge){
		func(j *Judge) {
			j.Source = func(name, version, file, manifest string) error {
				if name+"@"+version+" "+manifest != "net@1 net" {
					t.Errorf("asked for %s@%s %s", name, version, manifest)
				}
				return no
			}
		},
		func(j *Judge) {
			j.Module = func(a Artifact, m Module, file string) error {
				if text, err := os.ReadFile(file); err != nil || hexOf(text) != m.Digest || a.Modules[0].Name != m.Name {
					t.Errorf("asked for %s: %v", text, err)
				}
				return no
			}
		},
	} {
		judge := anyJudge
		change(&judge)
		var bad *ArchiveError
		if _, err := r.Import(t.Context(), bytes.NewReader(text), judge, false); !errors.Is(err, no) || !errors.As(err, &bad) {
			t.Errorf("error: %v", err)
		}
		if names := blobs(t, r); len(names) > 0 {
			t.Errorf("left: %q", names)
		}
	}
	if _, err := reader(t, t.TempDir()).Import(t.Context(), bytes.NewReader(text), anyJudge, false); !errors.Is(err, ErrReadOnly) {
		t.Errorf("error: %v", err)
	}
}

// A source that came by import is one like others once its folder is added.
func TestAddWhatWasImported(t *testing.T) {
	from, src, as := exporter(t)
	r := writer(t, t.TempDir(), "/")
	importInto(t, r, exported(t, from, src, as))
	out := t.TempDir()
	must(t, r.Extract(src, out))
	added, changed, err := r.AddSource(t.Context(), out, "net", "1", "net")
	must(t, err)
	if !changed || added.Digest != src.Digest || added.Origin != out {
		t.Errorf("changed %v, %+v", changed, added)
	}
	must(t, r.RemoveSource("net", "1"))
	if names := blobs(t, r); len(names) > 0 {
		t.Errorf("blobs left: %q", names)
	}
}

// On a full disk nothing changes, and with room the same command works.
func TestImportDiskFull(t *testing.T) {
	from, src, _ := exporter(t)
	file := filepath.Join(t.TempDir(), "net.ko")
	must(t, os.WriteFile(file, bytes.Repeat([]byte("big module "), 100_000), 0o644))
	big, err := from.PutArtifact(t.Context(), Artifact{Package: "net", Version: "1", Release: "7.7.7", Modules: []Module{{Name: "net", File: "net.ko"}},
		Built: time.Unix(1e9, 0)}, map[string]string{"net": file})
	must(t, err)
	text := exported(t, from, src, []Artifact{big})
	dir := t.TempDir()
	smallDisk(t, dir, 4<<20)
	r := writer(t, filepath.Join(dir, "registry"), "/")
	refill := leave(t, dir, 40)
	_, err = r.Import(t.Context(), bytes.NewReader(text), anyJudge, false)
	if err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("error: %v", err)
	}
	srcs, srcErr := r.Sources()
	if names := blobs(t, r); len(names) > 0 || len(srcs) > 0 || srcErr != nil {
		t.Errorf("left: %q %+v %v", names, srcs, srcErr)
	}
	refill()
	if out := importInto(t, r, text); out.Action != ImportNew {
		t.Errorf("with room: %+v", out)
	}
}

// Whatever an archive holds, it is taken in whole or leaves nothing.
func FuzzImport(f *testing.F) {
	from, src, as := exporter(f)
	f.Add(exported(f, from, src, as))
	f.Add(forge(f, sourceTar(f), []string{recordOf(f, "ko", nil)}, []string{"ko"}, nil))
	for _, c := range hostile(f) {
		if len(c.text) < 1<<16 {
			f.Add(c.text)
		}
	}
	r, err := OpenWriter(f.Context(), f.TempDir(), "/", WriterOptions{Command: "kmodctl fuzz", Version: "0.0-test"})
	must(f, err)
	f.Cleanup(func() { r.Close() })
	f.Fuzz(func(t *testing.T, text []byte) {
		out, err := r.Import(t.Context(), bytes.NewReader(text), anyJudge, false)
		if err == nil {
			got, err := r.Source(out.Name, out.Version)
			must(t, err)
			all, err := r.Artifacts()
			must(t, err)
			importInto(t, r, exported(t, r, got, all)) // what was taken in can be given on
			must(t, r.Extract(got, t.TempDir()))
			must(t, r.RemoveSource(out.Name, out.Version))
		}
		if names := blobs(t, r); len(names) > 0 {
			t.Fatalf("left: %q", names)
		}
	})
}
