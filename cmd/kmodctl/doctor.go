package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"kmodctl/build"
	"kmodctl/internal/kernel"
)

func cmdDoctor(e *env) *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "tell today what would make the next kernel upgrade fail here",
		Description: examples("One line for each CHECK; exit code 1 when one fails. The checks are\n\n"+
			"   hooks        what calls kmodctl when kernels come and go is in place, and DKMS's hooks are not beside it\n"+
			"   headers      each kernel has what a build needs, and the packages that bring newer kernels bring their headers\n"+
			"   compiler     the compiler that each kernel was built with is here\n"+
			"   builds       what is registered builds for the newest kernel\n"+
			"   space        there is room for another kernel in /boot and /lib/modules, and for builds in /var/lib\n"+
			"   secure-boot  the kernel will not refuse modules for want of a signature\n"+
			"   initramfs    no initramfs is older than a module that its manifest says it must hold\n"+
			"   machine      the running kernel is this machine's own",
			"kmodctl doctor", "kmodctl doctor --json"),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			return e.doctor(c.Context)
		},
	}
}

// finding is what a check of doctor says. One that has nothing to say finds that all is ok.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"`            // ok, warning (it works now) or fail
	What  string `json:"what,omitempty"`   // in words
	Try   string `json:"remedy,omitempty"` // a command, when there is one
}

// The states of a finding.
const (
	findingOK      = "ok"
	findingWarning = "warning"
	findingFail    = "fail"
)

// ill says that a machine is not ready for the next kernel.
type ill struct{ fails int }

func (i ill) Error() string {
	return fmt.Sprintf("doctor: %s would fail at the next kernel upgrade", count(i.fails, "thing"))
}

func (e *env) doctor(ctx context.Context) error {
	kernels, err := kernel.Find(e.root)
	if err != nil {
		return err
	}
	var all []finding
	for _, check := range []struct {
		name string
		do   func(context.Context, []kernel.Release) ([]finding, error)
	}{
		{"hooks", e.checkHooks}, {"headers", e.checkHeaders}, {"compiler", e.checkCompilers}, {"builds", e.checkBuilds},
		{"space", e.checkSpace}, {"secure-boot", e.checkSecureBoot}, {"initramfs", e.checkInitramfs}, {"machine", e.checkMachine},
	} {
		found, err := check.do(ctx, kernels)
		if err != nil {
			found = append(found, finding{State: findingFail, What: err.Error()})
		}
		if len(found) == 0 {
			found = []finding{{State: findingOK}}
		}
		for _, f := range found {
			f.Check = check.name
			all = append(all, f)
		}
	}
	fails := 0
	for _, f := range all {
		if f.State == findingFail {
			fails++
		}
	}
	if e.json {
		if err := e.document("doctor", map[string]any{"checks": all}); err != nil {
			return err
		}
	} else {
		t := e.table("CHECK", "STATE", "WHAT", "TRY")
		for _, f := range all {
			t.row(f.Check, f.State, f.What, f.Try)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if fails > 0 {
		return ill{fails}
	}
	return nil
}

func (e *env) checkHooks(context.Context, []kernel.Release) (found []finding, err error) {
	files, err := e.hookFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		switch f.State {
		case hookForeign:
			found = append(found, finding{State: findingFail, What: f.Path + " is not kmodctl's: DKMS builds beside it, or nothing does", Try: "kmodctl hooks install"})
		case hookAbsent, hookOff:
			found = append(found, finding{State: findingFail, What: f.Path + " is " + f.State + ": nothing is built when a kernel comes", Try: "kmodctl hooks install"})
		case hookChanged:
			found = append(found, finding{State: findingWarning, What: f.Path + " was changed"})
		}
	}
	for _, name := range []string{"/usr/lib/dkms/dkms_autoinstaller", "/usr/lib/kernel/install.d/40-dkms.install", "/etc/systemd/system/multi-user.target.wants/dkms.service"} {
		text, err := e.root.ReadFile(name)
		if err == nil && !strings.Contains(string(text), "kmodctl") {
			found = append(found, finding{State: findingWarning, What: name + " is DKMS's: what is registered in both is built twice"})
		}
	}
	return found, nil
}

func (e *env) checkHeaders(_ context.Context, kernels []kernel.Release) (found []finding, err error) {
	for _, k := range kernels {
		if m := (missingHeaders{k}); k.Tree == nil && k.Modules != "" {
			found = append(found, finding{State: findingFail, What: k.Name + ": " + m.what(), Try: strings.Join(m.remedies(), "; ")})
		}
	}
	packages, err := e.debianPackages()
	for _, name := range packages {
		flavour, ok := strings.CutPrefix(name, "linux-image-")
		isKernel := func(k kernel.Release) bool { return strings.TrimPrefix(flavour, "unsigned-") == k.Name }
		if !ok || strings.HasSuffix(name, "-dbg") || slices.ContainsFunc(kernels, isKernel) || slices.Contains(packages, "linux-headers-"+flavour) {
			continue
		}
		found = append(found, finding{State: findingFail, What: name + " brings newer kernels, and nothing brings their headers", Try: "apt install linux-headers-" + flavour})
	}
	return found, err
}

// debianPackages are the installed packages of a Debian; none elsewhere.
func (e *env) debianPackages() (names []string, err error) {
	text, err := e.root.ReadFile("/var/lib/dpkg/status")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	name := ""
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "Package: "); ok {
			name = strings.TrimSpace(n)
		} else if status, ok := strings.CutPrefix(line, "Status: "); ok && strings.HasSuffix(strings.TrimSpace(status), " installed") {
			names = append(names, name)
		}
	}
	return names, err
}

func (e *env) checkCompilers(_ context.Context, kernels []kernel.Release) (found []finding, err error) {
	var p build.Planner
	any := &build.Manifest{Name: "any", Version: "1"}
	for _, k := range kernels {
		if k.Tree == nil {
			continue
		}
		switch s := p.Decide(any, "", k, nil, build.Made{}); {
		case s.Err != nil:
			f := finding{State: findingFail, What: k.Name + ": " + s.Err.Error()}
			if advice := hints(s.Err); len(advice) > 0 {
				f.Try = advice[0]
			}
			found = append(found, f)
		case s.Toolchain.Note != "":
			found = append(found, finding{State: findingWarning, What: k.Name + ": " + s.Toolchain.Note})
		}
	}
	return found, nil
}

func (e *env) checkBuilds(ctx context.Context, kernels []kernel.Release) (found []finding, err error) {
	reg, err := e.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer reg.Close()
	kernels = slices.DeleteFunc(slices.Clone(kernels), func(k kernel.Release) bool { return k.Tree == nil })
	if len(kernels) == 0 {
		return nil, nil
	}
	s := &statusReader{job: job{env: e, reg: reg}}
	sources, err := s.gather(ctx, nil)
	if err != nil {
		return nil, err
	}
	s.kernels = kernels[len(kernels)-1:]
	for _, src := range newestOf(sources) {
		p, err := s.pkg(src)
		if err != nil {
			return found, err
		}
		for _, k := range p.Kernels {
			if k.State == stateFailed {
				found = append(found, finding{State: findingFail, What: fmt.Sprintf("%s %s for %s: %s", p.Name, p.Version, k.Release, k.Why), Try: "kmodctl log " + p.Name + " -k " + k.Release})
			}
		}
	}
	return found, nil
}

// roomForBuilds is what builds may take in /var/lib/kmodctl, in bytes: the sources and objects of a large package.
const roomForBuilds = 1 << 30

// checkSpace takes the newest kernel for the measure of the next one.
func (e *env) checkSpace(_ context.Context, kernels []kernel.Release) (found []finding, err error) {
	need := map[string]int64{system: roomForBuilds}
	for _, k := range slices.Backward(kernels) {
		if k.Modules == "" || k.Image == "" {
			continue
		}
		if need["/lib/modules"], err = e.sizeOf(k.Modules); err != nil {
			return nil, err
		}
		if need["/boot"], err = e.bootSize(k.Name); err != nil {
			return nil, err
		}
		break
	}
	for _, dir := range []string{"/boot", "/lib/modules", system} {
		host := ""
		for at := dir; host == "" && at != "/"; at = path.Dir(at) { // what is not there yet will be where its parent is
			host, _ = e.root.Path(at)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(host, &st); err != nil {
			return found, fmt.Errorf("look at the disk of %s: %w", dir, err)
		}
		if free := int64(st.Bavail) * st.Bsize; free < need[dir] {
			found = append(found, finding{State: findingFail, What: fmt.Sprintf("%s has %d MB free, and needs %d", dir, free>>20, need[dir]>>20), Try: "remove kernels that are not used: apt autoremove, or dnf remove --oldinstallonly"})
		}
	}
	return found, nil
}

// sizeOf is what the files below a folder inside the root take, in bytes.
func (e *env) sizeOf(dir string) (size int64, err error) {
	host, err := e.root.Path(dir)
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(host, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// bootSize is what a kernel has in /boot, in bytes.
func (e *env) bootSize(release string) (size int64, err error) {
	entries, err := e.root.ReadDir("/boot")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && strings.HasSuffix(entry.Name(), "-"+release) {
			size += info.Size()
		}
	}
	return size, err
}

// checkSecureBoot says what keeps modules from kernels that take signed ones only.
func (e *env) checkSecureBoot(ctx context.Context, _ []kernel.Release) (found []finding, err error) {
	s, err := e.secureBoot(ctx)
	for _, n := range s.Next {
		f := finding{State: findingFail, What: n.Why, Try: n.Try}
		if n.Try == rebootStep {
			f.State = findingWarning
		}
		found = append(found, f)
	}
	return found, err
}

func (e *env) checkMachine(_ context.Context, kernels []kernel.Release) (found []finding, err error) {
	for _, k := range kernels {
		if k.Running && k.Modules == "" {
			found = append(found, finding{State: findingWarning, What: "the running kernel " + k.Name + " has no modules here: it is a container's or a provider's, and its upgrades are not this machine's"})
		}
	}
	if len(kernels) == 0 || !slices.ContainsFunc(kernels, func(k kernel.Release) bool { return k.Modules != "" }) {
		found = append(found, finding{State: findingWarning, What: "no kernel is installed here"})
	}
	for _, name := range []string{"/run/.containerenv", "/.dockerenv"} {
		if _, err := e.root.Path(name); err == nil {
			found = append(found, finding{State: findingWarning, What: "this is a container: modules are the host's matter"})
			break
		}
	}
	return found, nil
}

// checkInitramfs looks at the packages whose manifests say that the initramfs must hold their modules.
func (e *env) checkInitramfs(ctx context.Context, kernels []kernel.Release) (found []finding, err error) {
	reg, err := e.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer reg.Close()
	installs, err := reg.Installs()
	if err != nil {
		return nil, err
	}
	for _, k := range kernels {
		image, err := e.initramfsOf(k.Name)
		if err != nil {
			return found, err
		}
		for _, i := range installs {
			if i.Release != k.Name {
				continue
			}
			wanted, err := wantsInitramfs(reg, i.Package, i.Version)
			if err != nil {
				return found, err
			}
			if !wanted {
				continue
			}
			if info, err := os.Stat(image); image != "" && err == nil && info.ModTime().Before(i.At) {
				found = append(found, finding{State: findingFail, What: fmt.Sprintf("the initramfs of %s is older than %s", k.Name, i.Path), Try: strings.Join(e.remakeCommand(k.Name), " ")})
				break
			}
		}
	}
	return found, nil
}
