package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/registry"
)

// withheld is why an artifact that could be installed must not be.
type withheld interface {
	error
	what() string
}

// withholdSome leaves out what a pin holds back, and the packages whose place on a
// kernel is held by a newer module that is not ours, unless ours is installed there
// already: they are kept in the registry, or have failed where the install was asked for.
func (j *job) withholdSome(k kernel.Release, due []registry.Artifact, installs []registry.Install, asked bool) (rest []registry.Artifact) {
	for _, art := range due {
		err := j.otherPin(art)
		if err == nil && !j.force && j.cannotInstall(k) == "" {
			if err = j.newerOriginal(art, installs); err != nil {
				if older, _ := j.forced(art.Package); older {
					j.changed("note: %v; %s has it installed all the same", err, forcedFolder)
					err = nil
				}
			}
		}
		var why withheld
		switch {
		case err == nil:
			rest = append(rest, art)
		case asked, !errors.As(err, &why): // what cannot be looked at is no other kernel's matter
			j.begun()
			j.fail(err)
			j.installed(art, "failed", err.Error())
		default:
			j.keep([]registry.Artifact{art}, why.what())
		}
	}
	return rest
}

// otherPin is an install of another artifact than a pin says.
type otherPin struct {
	art registry.Artifact
	pin registry.Pin
}

func (o otherPin) Error() string {
	return fmt.Sprintf("install %s@%s for %s: pinned to %s", o.art.Package, o.art.Version, o.art.Release, o.pin.Version)
}

func (o otherPin) what() string { return "pinned to " + o.pin.Version + ": " + o.remedy() }

// remedy is the command that takes the pin away.
func (o otherPin) remedy() string {
	if o.pin.Release == "" {
		return "kmodctl unpin " + o.pin.Package
	}
	return "kmodctl unpin " + o.pin.Package + " -k " + o.pin.Release
}

// otherPin returns an error of that type when a pin holds an artifact back.
func (j *job) otherPin(art registry.Artifact) error {
	pin, ok := j.pins.For(art.Package, art.Release)
	if ok && (pin.Version != art.Version || pin.Artifact != "" && pin.Artifact != art.Digest) {
		return otherPin{art, pin}
	}
	return nil
}

// newerOriginal is an install that would shadow a newer module of the same name.
type newerOriginal struct {
	art      registry.Artifact
	module   registry.Module
	original registry.Original
	version  string // of the original
}

func (n newerOriginal) Error() string {
	return fmt.Sprintf("install %s@%s for %s: %s", n.art.Package, n.art.Version, n.art.Release, n.what())
}

func (n newerOriginal) what() string {
	return fmt.Sprintf("%s has version %s, ours is %s", n.original.Path, n.version, n.module.Version)
}

// newerOriginal compares the MODULE_VERSION of what an artifact would newly shadow,
// where both have one; the error is of that type when ours is older.
func (j *job) newerOriginal(art registry.Artifact, installs []registry.Install) error {
	byName := map[string]registry.Module{}
	for _, m := range art.Modules {
		has := func(i registry.Install) bool { return i.Release == art.Release && i.Module == m.Name }
		if !slices.ContainsFunc(installs, has) {
			byName[m.Name] = m
		}
	}
	if len(byName) == 0 { // in a dry run, what is not built has none
		return nil
	}
	originals, err := j.reg.Shadows(j.root, art.Release, slices.Collect(maps.Keys(byName)))
	if err != nil {
		return fmt.Errorf("install %s@%s for %s: %w", art.Package, art.Version, art.Release, err)
	}
	for _, o := range originals {
		path, err := j.root.Path(o.Path)
		if err != nil {
			return fmt.Errorf("install %s@%s for %s: %w", art.Package, art.Version, art.Release, err)
		}
		m := byName[o.Module]
		info, err := ko.Open(path)
		if err != nil || info.Version == "" || m.Version == "" {
			continue // a file that cannot be read as a module is no better than ours
		}
		if registry.CompareVersions(info.Version, m.Version) > 0 {
			return newerOriginal{art, m, o, info.Version}
		}
	}
	return nil
}
