package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"kmodctl/registry"
)

func cmdExport(e *env) *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write a package, with its source and what was built of it, into one archive",
		ArgsUsage: "NAME|NAME@VERSION",
		Description: examples("The archive is for kmodctl import on another machine. It holds the newest artifact of each kernel; of\n"+
			"a NAME alone, of the newest version. The same content gives the same bytes on every machine. To check one:\n"+
			"tar xf FILE, then sha256sum -c SHA256SUMS in its folder. A file that is there already is replaced, once\n"+
			"the new one is whole.",
			"kmodctl export hello", "kmodctl export hello@1.0.0 -k 6.1.0-56-amd64 -o /media/stick/hello.tar", "kmodctl export hello -o - | ssh HOST kmodctl import -"),
		Flags: []cli.Flag{
			kernelFlag("only what was built for kernel `RELEASE` (repeatable)"),
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, DefaultText: "NAME-VERSION.kmodctl.tar", Usage: "write to `FILE`, - for standard output; default: NAME-VERSION.kmodctl.tar"},
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			arg, err := oneArg(c, "package")
			if err != nil {
				return err
			}
			if c.IsSet("output") && c.String("output") == "" {
				return usagef("export: the name of the file is empty")
			}
			return e.export(c.Context, arg, c.StringSlice("kernel"), c.String("output"))
		},
	}
}

func (e *env) export(ctx context.Context, arg string, releases []string, file string) error {
	if err := e.checkOutput(file); err != nil {
		return err
	}
	reg, err := e.reader(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	src, err := source(reg, arg)
	if err != nil {
		return err
	}
	as, err := e.exportable(reg, src, releases)
	if err != nil {
		return err
	}
	if file == "" {
		file = src.Name + "-" + src.Version + ".kmodctl.tar"
	}
	built := orEmpty(builtFor(as))
	if e.dryRun {
		e.would("export %s %s for %s to %s", src.Name, src.Version, count(len(as), "kernel"), file)
	}
	var sum string
	var size int64
	if !e.dryRun {
		sum, size, err = e.writeOut(file, func(w io.Writer) error { return reg.Export(ctx, src, as, w) })
		if err != nil {
			return err
		}
		e.changed("exported %s %s for %s to %s", src.Name, src.Version, count(len(as), "kernel"), file)
	}
	if e.json {
		return e.document("export", map[string]any{"dry_run": e.dryRun, "name": src.Name, "version": src.Version,
			"releases": built, "file": file, "size": size, "sha256": sum})
	}
	return nil
}

// checkOutput refuses to mix the archive with other output, and to show it to a person.
func (e *env) checkOutput(file string) error {
	if file != "-" {
		return nil
	}
	if e.json {
		return usagef("export: -o - and --json both want standard output")
	}
	if f, ok := e.out.(*os.File); ok && !e.dryRun && term.IsTerminal(int(f.Fd())) {
		return usagef("export: standard output is a terminal: -o FILE, or a pipe behind -o -")
	}
	return nil
}

// exportable are the newest artifacts of a source, one for each kernel; of a source that
// was replaced since, none.
func (e *env) exportable(reg *registry.Registry, src registry.Source, releases []string) ([]registry.Artifact, error) {
	all, err := reg.Artifacts(src.Name)
	if err != nil {
		return nil, err
	}
	var as []registry.Artifact
	for _, a := range all {
		if a.Version != src.Version || len(releases) > 0 && !slices.Contains(releases, a.Release) {
			continue
		}
		if !madeOf(a, src) {
			e.say("left out: what was built for %s, which is of an earlier source", a.Release)
			continue
		}
		as = append(as, a)
	}
	for _, release := range releases {
		if !slices.ContainsFunc(as, func(a registry.Artifact) bool { return a.Release == release }) {
			if err := e.checkKernels([]string{release}, builtFor(all)); err != nil {
				return nil, err
			}
			return nil, notBuilt{"export", src.Name, []string{release}}
		}
	}
	return as, nil
}

// builtFor are the kernels that artifacts are for.
func builtFor(as []registry.Artifact) (releases []string) {
	for _, a := range as {
		releases = append(releases, a.Release)
	}
	return releases
}

// madeOf reports whether an artifact is of the source as it is now.
func madeOf(a registry.Artifact, src registry.Source) bool {
	return slices.Contains(a.Inputs, registry.Input{Name: "source", Value: src.Digest})
}

// writeOut writes a file that is whole or not there, or standard output, and returns the
// SHA-256 of what was written and its size.
func (e *env) writeOut(file string, write func(io.Writer) error) (sum string, size int64, err error) {
	hash := sha256.New()
	var n counter
	all := func(w io.Writer) error { return write(io.MultiWriter(w, hash, &n)) }
	if file == "-" {
		err = all(e.out)
	} else {
		err = writeWhole(file, all)
	}
	return hex.EncodeToString(hash.Sum(nil)), int64(n), err
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// writeWhole gives a file its name once it is whole and durable. Only a regular file is
// replaced: /dev/null is to stay what it is.
func writeWhole(file string, write func(io.Writer) error) (err error) {
	info, err := os.Lstat(file)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("write %s: there is something that is not a regular file", file)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	temp := ".kmodctl-" + rand.Text()
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, dir.Remove(temp))
	}
	if err := dir.Rename(temp, filepath.Base(file)); err != nil {
		return err
	}
	names, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer names.Close()
	if err := names.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems know no fsync of a folder
		return err
	}
	return nil
}
