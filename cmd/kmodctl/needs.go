package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// needsError is a package that cannot be built for a kernel, for want of one that its manifest needs.
type needsError struct {
	name string // of what is needed
	why  error
	skip bool // that one is not for this kernel either
}

func (n *needsError) Error() string { return fmt.Sprintf("it needs the package %s: %v", n.name, n.why) }
func (n *needsError) Unwrap() error { return n.why }

// withNeeds adds what sources need to be built with for some kernels.
func (j *job) withNeeds(sources []registry.Source, kernels []kernel.Release) []registry.Source {
	for i := 0; i < len(sources); i++ {
		manifest := j.manifests(sources[i])
		for _, k := range kernels {
			m, err := manifest(k)
			if err != nil {
				continue // its step says so
			}
			for _, name := range m.Build.Needs {
				if slices.ContainsFunc(sources, func(s registry.Source) bool { return s.Name == name }) {
					continue
				}
				if src, err := j.reg.Source(name, ""); err == nil {
					sources = append(sources, src)
				}
			}
		}
	}
	return sources
}

// needed is the version of a package that others are built with on a kernel: the one that
// the command is about, the pinned one, else the newest.
func (j *job) needed(name string, k kernel.Release) (registry.Source, *build.Manifest, error) {
	if err := j.know(); err != nil {
		return registry.Source{}, nil, err
	}
	src, given := j.given[name]
	if p, ok := j.pins.For(name, k.Name); ok && !j.named[name] {
		given, src.Version = false, p.Version
	}
	if !given {
		var err error
		if src, err = j.reg.Source(name, src.Version); err != nil {
			return src, nil, err
		}
	}
	m, err := j.manifests(src)(k)
	return src, m, err
}

// needs are the inputs that come from the packages that m needs on a kernel: of each the
// hash of its own, since equal inputs make equal exports. lack tells of one that cannot be had.
func (j *job) needs(m *build.Manifest, k kernel.Release) (in []build.Input, lack *needsError, err error) {
	for _, name := range m.Build.Needs {
		src, its, err := j.needed(name, k)
		if err != nil {
			return nil, &needsError{name: name, why: err}, nil
		}
		if j.reaches(its, m.Name, k, map[string]bool{}) {
			return nil, &needsError{name: name, why: fmt.Errorf("which needs %s", m.Name)}, nil
		}
		step, err := j.step(src, its, nil, k)
		switch {
		case err != nil:
			return nil, nil, err
		case step.Action == build.ActionFail:
			return nil, &needsError{name: name, why: step.Err}, nil
		case step.Action == build.ActionSkip:
			return nil, &needsError{name: name, why: errors.New(step.Reason), skip: true}, nil
		}
		in = append(in, build.Input{Name: "needs " + name, Value: step.InputHash})
	}
	return in, nil, nil
}

// reaches reports whether what m needs, and what that needs, comes to name.
func (j *job) reaches(m *build.Manifest, name string, k kernel.Release, seen map[string]bool) bool {
	for _, next := range m.Build.Needs {
		if next == name {
			return true
		}
		if seen[next] {
			continue
		}
		seen[next] = true
		if _, its, err := j.needed(next, k); err == nil && j.reaches(its, name, k, seen) {
			return true
		}
	}
	return false
}

// neededBy are the builds among todo that a step waits for.
func neededBy(s build.Step, todo []build.Step) (before []int) {
	for i, t := range todo {
		if t.Release == s.Release && slices.Contains(s.Manifest.Build.Needs, t.Package) {
			before = append(before, i)
		}
	}
	return before
}

// writeSymvers puts into the folder of a build what the modules that it needs export, and
// returns the files' names.
func (j *job) writeSymvers(dir string, s build.Step) (files []string, err error) {
	for _, name := range s.Manifest.Build.Needs {
		text, err := j.symvers(name, s)
		if err != nil {
			return nil, &needsError{name: name, why: err}
		}
		file := ".kmodctl-" + name + ".symvers"
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// symvers is what the artifact of a package exports: the one that a step's inputs speak of.
func (j *job) symvers(name string, s build.Step) (string, error) {
	src, _, err := j.needed(name, s.Kernel)
	if err != nil {
		return "", err
	}
	art, ok, err := j.artifact(src, s.Release)
	if err != nil {
		return "", err
	}
	if !ok || !slices.Contains(s.Inputs, build.Input{Name: "needs " + name, Value: art.InputHash}) {
		return "", fmt.Errorf("%s %s is not built for %s", name, src.Version, s.Release)
	}
	var text strings.Builder
	for _, m := range art.Modules {
		blob, err := j.reg.Blob(m.Digest)
		if err != nil {
			return "", err
		}
		data, err := io.ReadAll(blob)
		if err := errors.Join(err, blob.Close()); err != nil {
			return "", err
		}
		info, err := ko.Read(data)
		if err != nil {
			return "", err
		}
		text.WriteString(info.Symvers(strings.TrimSuffix(m.File, ".ko")))
	}
	return text.String(), nil
}
