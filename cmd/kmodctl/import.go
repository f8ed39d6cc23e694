package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

func cmdImport(e *env) *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "take a package out of an archive that export wrote into the registry",
		ArgsUsage: "FILE|-",
		Description: examples("Everything in the archive is checked before the registry changes; of one that is refused, nothing is left.\n"+
			"Nothing is built and nothing installed: kmodctl install does that, and needs neither headers nor a compiler.\n"+
			"For a kernel that the package was built for here, the artifact that is here stays; one that was\n"+
			"imported gives way to a newer one. An archive says nothing of who made it: take it from whom you trust.",
			"kmodctl import hello-1.0.0.kmodctl.tar", "kmodctl import hello-1.0.0.kmodctl.tar --dry-run", "ssh HOST kmodctl export hello -o - | kmodctl import -"),
		Action: func(c *cli.Context) error {
			file, err := oneArg(c, "archive")
			if err != nil {
				return err
			}
			return e.importFile(c.Context, file)
		},
	}
}

func (e *env) importFile(ctx context.Context, file string) error {
	f, err := openArchive(file)
	if err != nil {
		return err
	}
	defer f.Close()
	reg, err := e.open(ctx, "import "+file)
	if err != nil {
		return err
	}
	defer e.close(reg)
	got, err := reg.Import(ctx, cancellable(ctx, f), archiveJudge, e.dryRun)
	if err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	if e.json {
		return e.document("import", struct {
			DryRun bool `json:"dry_run"`
			registry.Imported
		}{e.dryRun, got})
	}
	e.tellImported(got)
	return nil
}

func openArchive(file string) (*os.File, error) {
	if file != "-" {
		return os.Open(file)
	}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, usagef("import: standard input is a terminal: give a FILE, or a pipe before import -")
	}
	return os.Stdin, nil
}

// cancellable reads f until ctx is done, even while a pipe has nothing to read.
func cancellable(ctx context.Context, f io.Reader) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, f)
		w.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })
	return r
}

// tellImported says what came: one line for the source and one for each artifact.
func (e *env) tellImported(got registry.Imported) {
	tell := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if e.dryRun {
			e.would("import %s", text)
		} else {
			e.changed("imported %s", text)
		}
	}
	done := got.Mended
	if got.Action == registry.ImportNew {
		tell("the source of %s %s", got.Name, got.Version)
		done++
	}
	for _, a := range got.Artifacts {
		switch a.Action {
		case registry.ImportNew:
			tell("%s %s for %s", got.Name, got.Version, a.Release)
			done++
		case registry.ImportSkip:
			e.say("passed over %s %s for %s: %s", got.Name, got.Version, a.Release, a.Why)
		}
	}
	if got.Mended > 0 {
		tell("%s that had been damaged or gone", count(got.Mended, "blob"))
	}
	switch {
	case done == 0:
		e.say("nothing to do: %s %s is here", got.Name, got.Version)
	case !e.dryRun && len(got.Artifacts) > 0:
		e.say("kmodctl install %s@%s installs it", got.Name, got.Version)
	}
}

// archiveJudge holds what an archive says of its source and modules against them.
var archiveJudge = registry.Judge{Manifests: []string{build.ManifestFile, dkms.ConfFile}, Source: judgeSource, Module: judgeModule}

// judgeSource evaluates no dkms.conf: it is not this machine's kernels that it may be for, and as what package it is registered
// goes over what it says.
func judgeSource(name, version, file, manifest string) error {
	if file == dkms.ConfFile {
		return (&build.Manifest{Name: name, Version: version}).Valid()
	}
	m, err := build.ParseManifest(build.ManifestFile, []byte(manifest))
	if err != nil {
		return err
	}
	if m.Name != name || m.Version != version {
		return fmt.Errorf("its %s is of %s@%s", build.ManifestFile, m.Name, m.Version)
	}
	return nil
}

func judgeModule(a registry.Artifact, m registry.Module, file string) error {
	info, err := ko.Open(file)
	if err != nil {
		return err
	}
	if info.Release() != a.Release {
		return fmt.Errorf("module %s is for kernel %q, its record says %s", m.Name, info.Release(), a.Release)
	}
	is := moduleFacts(info)
	if m.Place != "" { // of a dkms.conf, which may rename a module
		is.Name = m.Name
	}
	for _, f := range []struct{ what, is, said string }{
		{"name", is.Name, m.Name}, {"vermagic", is.Vermagic, m.Vermagic}, {"build-id", is.BuildID, m.BuildID},
		{"srcversion", is.SrcVersion, m.SrcVersion}, {"version", is.Version, m.Version},
	} {
		if f.is != f.said {
			return fmt.Errorf("module %s has %s %q, its record says %q", m.Name, f.what, f.is, f.said)
		}
	}
	if !slices.Equal(is.Depends, m.Depends) {
		return fmt.Errorf("module %s depends on %q, its record says %q", m.Name, is.Depends, m.Depends)
	}
	return nil
}
