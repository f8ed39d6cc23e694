package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// DKMS is what a dkms.conf says of a build that a kmod.toml cannot, as it was read for one kernel. MAKE, PRE_BUILD
// and POST_BUILD name /var/lib/dkms/NAME/VERSION/build and /usr/src/NAME-VERSION, so the copies are there.
type DKMS struct {
	Make      string `json:"make,omitempty"`       // for bash; "" is kbuild's own target
	PreBuild  string `json:"pre_build,omitempty"`  // a script of the source and its arguments, split at blanks; run after the patches
	PostBuild string `json:"post_build,omitempty"` // the same, run when the modules have been taken
	Excluded  string `json:"-"`                    // why it is not for that kernel; "" when it is
	Manual    bool   `json:"-"`                    // it is built when it is asked for by name, and not when a kernel comes

	// Files of /etc/dkms/NAME that go over those of the source, or come to them: SHA-256 in hex, by name in the source. Who calls Run
	// has put them there.
	Own map[string]string `json:"own,omitempty"`
}

// AnyRelease stands in a DKMS's texts for the release of the kernel. So they are the same input for two kernels whose names
// are all that they differ in; no text for bash holds a NUL byte.
const AnyRelease = "\x00"

// The places of DKMS's defaults, dkms_tree and source_tree of its framework.conf.
const (
	dkmsTree   = "/var/lib/dkms"
	sourceTree = "/usr/src"
)

// buildPlace and sourcePlace are where the package of a dkms.conf expects the copy that it is built in, and its source.
func (m *Manifest) buildPlace() string  { return filepath.Join(dkmsTree, m.Name, m.Version, "build") }
func (m *Manifest) sourcePlace() string { return filepath.Join(sourceTree, m.Name+"-"+m.Version) }

// Valid checks what a kmod.toml's parser would have refused in a manifest that was made from a dkms.conf. Its names become
// names of files and folders.
func (m *Manifest) Valid() error {
	for _, v := range []struct{ key, value string }{{"PACKAGE_NAME", m.Name}, {"PACKAGE_VERSION", m.Version}} {
		if reason := badName(v.value); reason != "" {
			return fmt.Errorf("%s %s", v.key, reason)
		}
	}
	seen := map[string]bool{}
	for i, mod := range m.Modules {
		for _, v := range []struct{ key, value, reason string }{
			{"BUILT_MODULE_NAME", mod.Name, badModule(mod.Name)},
			{"BUILT_MODULE_LOCATION", mod.Dir, badPath(mod.Dir)},
			{"DEST_MODULE_NAME", mod.As, badModule(mod.As)},
			{"DEST_MODULE_LOCATION", mod.Place, badPath(mod.Place)},
		} {
			if v.reason != "" && (v.value != "" || v.key == "BUILT_MODULE_NAME") {
				return fmt.Errorf("%s[%d] %s", v.key, i, v.reason)
			}
		}
		name := moduleName(cmp.Or(mod.As, mod.Name))
		if seen[name] {
			return fmt.Errorf("the module %s is listed twice", name)
		}
		seen[name] = true
	}
	for i, p := range m.Build.Patches {
		if reason := badPath(p.File); reason != "" {
			return fmt.Errorf("PATCH[%d] %s", i, reason)
		}
	}
	for i, name := range m.Build.Needs {
		if reason := badName(name); reason != "" {
			return fmt.Errorf("BUILD_DEPENDS[%d] %s", i, reason)
		}
	}
	return nil
}

// makeEnv is what DKMS puts into the environment of MAKE, which may run any program: there is no command line to add
// to. kbuild takes KCPPFLAGS and KBUILD_EXTRA_SYMBOLS from there too (Documentation/kbuild/kbuild.rst).
func (r *run) makeEnv() []string {
	return append(r.makeVariables(), "CC="+r.Toolchain.CC)
}

// make builds the modules: by kbuild's command, or by MAKE. DKMS gives a number of jobs and KERNELRELEASE to a MAKE that
// begins with make, and to no other: those were never run with several jobs.
func (r *run) make(ctx context.Context, step string) error {
	if r.Manifest.DKMS == nil || r.Manifest.DKMS.Make == "" {
		return r.step(ctx, step, r.kbuild()...)
	}
	text := r.local(r.Manifest.DKMS.Make)
	if rest, ok := strings.CutPrefix(text, "make"); ok {
		return r.step(ctx, step, "bash", "-c", "make KERNELRELEASE="+r.Kernel.Name+rest)
	}
	return r.alone(ctx, step, "bash", "-c", text)
}

// gnuMakeFlags has every make that a MAKE runs take variables as from its command line ("Options/Recursion" in make's manual).
func gnuMakeFlags(variables []string) string {
	quote := strings.NewReplacer(`\`, `\\`, " ", `\ `)
	for i, v := range variables {
		variables[i] = quote.Replace(v)
	}
	return "GNUMAKEFLAGS=" + strings.Join(variables, " ")
}

// script runs PRE_BUILD or POST_BUILD; DKMS passes over one that is not executable.
func (r *run) script(ctx context.Context, step, text string) error {
	text = r.local(text)
	name, _, _ := strings.Cut(text, " ")
	if name == "" {
		return nil
	}
	info, err := os.Stat(filepath.Join(r.Source, name))
	if err != nil || info.Mode()&0o100 == 0 {
		fmt.Fprintf(r.Log, "%s is not executable: passed over, as DKMS does\n", name)
		return nil
	}
	return r.alone(ctx, step, "bash", "-c", "exec $0", r.wall.work()+"/"+text) // quotes mean nothing
}

// alone is step for a command that is told nothing of the jobserver.
func (r *run) alone(ctx context.Context, name string, argv ...string) error {
	fifo := r.wall.Fifo
	defer func() { r.wall.Fifo = fifo }()
	r.wall.Fifo = ""
	return r.step(ctx, name, argv...)
}

// local is a text of a dkms.conf with the places as the build sees them. The copies are elsewhere where there is no mount
// namespace, the build tree where it is not that of /lib/modules or the build user cannot reach it.
func (r *run) local(text string) string {
	text = strings.ReplaceAll(text, AnyRelease, r.Kernel.Name)
	places := []string{r.Manifest.buildPlace(), r.wall.work(), r.Manifest.sourcePlace(), r.wall.Beside.At}
	link, tree := filepath.Join("/lib/modules", r.Kernel.Name, "build"), r.wall.tree(r.Kernel)
	if host, err := r.Kernel.Root.Path(link); err != nil || host != r.Kernel.Tree.Host || tree != r.Kernel.Tree.Path {
		places = append(places, link, tree)
	}
	return strings.NewReplacer(places...).Replace(text)
}

// keep copies built modules to where POST_BUILD, which may be a make clean, does not look for them.
func (r *run) keep(built []Built) ([]Built, error) {
	const dir = ".kmodctl-built"
	root, err := os.OpenRoot(r.Source)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := root.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	for i := range built {
		to := path.Join(dir, strconv.Itoa(i))
		if err := copyFile(root, built[i].File, to); err != nil {
			return nil, fmt.Errorf("keep %s: %w", built[i].File, err)
		}
		built[i].File = to
	}
	return built, nil
}

func copyFile(root *os.Root, from, to string) error {
	in, err := root.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
