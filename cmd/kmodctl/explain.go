package main

import (
	"errors"
	"strings"

	"kmodctl/build"
	"kmodctl/internal/kernel"
	"kmodctl/registry"
)

// failedBuild is a build that failed, and where the package did build: what the registry
// remembers of it. "" is nowhere.
type failedBuild struct {
	error
	lastRelease string // newest kernel release that this version was built for
	lastVersion string // newest other version that was built for this release; looked for when there is no lastRelease
}

func (f failedBuild) Unwrap() error { return f.error }

// explained adds to the error of a step's build what the history says of its package.
func (j *job) explained(err error, s build.Step) error {
	var failed *build.Error
	if !errors.As(err, &failed) {
		return err
	}
	f := failedBuild{error: err}
	builds, readErr := j.reg.Builds(s.Package)
	for _, a := range builds {
		if a.Version == s.Version && a.Release != s.Release && (f.lastRelease == "" || kernel.Compare(a.Release, f.lastRelease) > 0) {
			f.lastRelease = a.Release
		}
		if a.Release == s.Release && a.Version != s.Version && (f.lastVersion == "" || registry.CompareVersions(a.Version, f.lastVersion) > 0) {
			f.lastVersion = a.Version
		}
	}
	if f.lastRelease != "" {
		f.lastVersion = ""
	}
	return errors.Join(f, readErr)
}

// evidence is what is known of a failed build beyond its one line.
func (f failedBuild) evidence() []string {
	switch {
	case f.lastRelease != "":
		return []string{"last: this version was built for " + f.lastRelease}
	case f.lastVersion != "":
		return []string{"last: version " + f.lastVersion + " was built for this kernel"}
	}
	return nil
}

// classed is why a build failed, its class before it.
func classed(class, why string) string {
	if class == "" {
		return why
	}
	return class + ": " + why
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
