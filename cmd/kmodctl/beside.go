package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"kmodctl/build"
	"kmodctl/registry"
)

// putBeside makes the files beside modules what the packages that are installed for any kernel say: firmware, udev rules,
// modules-load.d, modprobe.d. It is every writer's last step, so that what one that was killed has left is put right by the next.
func (e *env) putBeside(reg *registry.Registry) error {
	if e.dryRun || e.ownRegistry() {
		return nil
	}
	want, err := wantBeside(reg)
	if err != nil {
		return err
	}
	came, went, err := reg.PutBeside(want)
	for _, b := range came {
		e.changed("installed %s of %s %s", b.Path, b.Package, b.Version)
	}
	for _, b := range went {
		e.changed("removed %s of %s %s", b.Path, b.Package, b.Version)
	}
	return err
}

// wantBeside are the files of the newest version of each package that is installed for any kernel.
func wantBeside(reg *registry.Registry) (want []registry.Beside, err error) {
	installs, err := reg.Installs()
	if err != nil || len(installs) == 0 {
		return nil, err
	}
	newest := map[string]string{}
	for _, i := range installs {
		if v, ok := newest[i.Package]; !ok || registry.CompareVersions(v, i.Version) < 0 {
			newest[i.Package] = i.Version
		}
	}
	sources, err := reg.Sources()
	if err != nil {
		return nil, err
	}
	for _, src := range sources {
		if newest[src.Name] != src.Version || !strings.Contains(src.Manifest, "files") && !strings.Contains(src.Manifest, "params") && !strings.Contains(src.Manifest, `\`) {
			continue // most have none, and every writer asks; a backslash may spell the key otherwise
		}
		m, err := build.ParseManifest(build.ManifestFile, []byte(src.Manifest))
		if err != nil {
			continue // a dkms.conf, which brings none, or a newer kmodctl's manifest, of which the build tells
		}
		for _, b := range m.Beside() {
			if b.File == "" {
				sum := sha256.Sum256([]byte(b.Text))
				want = append(want, registry.Beside{Path: b.Path, Package: src.Name, Version: src.Version, Digest: hex.EncodeToString(sum[:]), Text: b.Text})
				continue
			}
			if at := slices.IndexFunc(src.Files, func(f registry.File) bool { return f.Path == b.File && f.Link == "" }); at >= 0 {
				want = append(want, registry.Beside{Path: b.Path, Package: src.Name, Version: src.Version, Digest: src.Files[at].SHA256, File: b.File})
			}
		}
	}
	return want, nil
}

// othersFile reports whether files beside modules were kept back only because there are others of their names. That lasts, and
// the modules are in place: it is no failure of a command.
func othersFile(err error) bool {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(all.Unwrap(), func(err error) bool { return !othersFile(err) })
	}
	return errors.As(err, new(*registry.ForeignError))
}
