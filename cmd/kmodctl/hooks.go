package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/packaging"
)

func cmdHooks(e *env) *cli.Command {
	return &cli.Command{
		Name:      "hooks",
		Usage:     "put the files in place by which package managers call kmodctl, or take them away",
		ArgsUsage: "install|status|remove",
		Description: examples("A package of kmodctl brings these files; install is for a kmodctl that came otherwise. It does so for what it\n"+
			"finds here: Debian's /etc/kernel, kernel-install, pacman, apk, zypper, systemd (for a kernel that boots\n"+
			"without its modules), initramfs-tools and dracut (initramfs = true of a manifest). A file of DKMS's in the same place is set aside, and put back by remove. What a package has installed,\n"+
			"remove masks. The STATE of a file is one of\n\n"+
			"   active    it calls this kmodctl\n"+
			"   absent    it is not there\n"+
			"   off       it is masked, or not executable\n"+
			"   changed   it calls kmodctl, and is not what install would write\n"+
			"   foreign   it is somebody else's, of DKMS perhaps",
			"kmodctl hooks status", "kmodctl hooks install --dry-run", "kmodctl hooks remove"),
		BashComplete: func(*cli.Context) { fmt.Fprintln(e.out, "install\nstatus\nremove") },
		Action: func(c *cli.Context) error {
			what, err := oneArg(c, "word")
			if err != nil {
				return err
			}
			files, err := e.hookFiles()
			if err != nil {
				return err
			}
			switch what {
			case "status":
				return e.hooksStatus(files)
			case "install":
				return e.eachHook(files, e.installHook)
			case "remove":
				return e.eachHook(files, e.removeHook)
			}
			return usagef("hooks: no word %q (install, status, remove)", what)
		},
	}
}

// hookFile is a file by which something calls kmodctl.
type hookFile struct {
	System string `json:"system"`
	Path   string `json:"path"`  // inside the root: where the administrator's is, or the package's when there is none
	State  string `json:"state"` // active, absent, off, changed or foreign

	own     string // where the administrator's is
	shipped string // where a package has it
	text    string // of a file; "" of a link
	link    string // where a link leads
}

// The states of a hook's file.
const (
	hookActive  = "active"
	hookAbsent  = "absent"
	hookOff     = "off"
	hookChanged = "changed"
	hookForeign = "foreign"
)

// hookSystems say by which path inside the root a machine shows that it has a system.
var hookSystems = map[string]string{
	"debian":          "/var/lib/dpkg",
	"kernel-install":  "/usr/bin/kernel-install",
	"pacman":          "/usr/bin/pacman",
	"apk":             "/lib/apk",
	"zypper":          "/usr/bin/zypper",
	"systemd":         "/usr/lib/systemd/system",
	"initramfs-tools": "/usr/share/initramfs-tools/hooks",
	"dracut":          "/usr/lib/dracut/modules.d",
}

// ownFolders are where an administrator's file takes the place of a package's.
var ownFolders = strings.NewReplacer(
	"/usr/lib/kernel/install.d/", "/etc/kernel/install.d/", // kernel-install(8)
	"/usr/share/libalpm/hooks/", "/etc/pacman.d/hooks/", // alpm-hooks(5)
	"/lib/apk/commit_hooks.d/", "/etc/apk/commit_hooks.d/", // apk(8)
	"/usr/lib/systemd/system/", "/etc/systemd/system/", // systemd.unit(5)
)

const (
	packagedProgram = "/usr/bin/kmodctl"
	setAside        = ".kmodctl-saved" // ends the name of a file that ours took the place of; nobody runs such a name
	bootUnit        = "kmodctl-boot.service"
)

// hookFiles are the files of the systems that the root has, by path, and their states.
func (e *env) hookFiles() (files []hookFile, err error) {
	program, err := e.program()
	if err != nil {
		return nil, err
	}
	err = fs.WalkDir(packaging.Hooks, "hooks", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := packaging.Hooks.ReadFile(name)
		if err != nil {
			return err
		}
		system, shipped, _ := strings.Cut(strings.TrimPrefix(name, "hooks/"), "/")
		if _, err := e.root.Path(hookSystems[system]); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		f := hookFile{System: system, shipped: "/" + shipped, text: strings.ReplaceAll(string(text), packagedProgram, program)}
		files = append(files, f)
		if path.Base(shipped) == bootUnit { // what systemctl enable would make
			files = append(files, hookFile{System: system, shipped: path.Join(path.Dir(f.shipped), "sysinit.target.wants", bootUnit), link: "../" + bootUnit})
		}
		return nil
	})
	for i := range files {
		f := &files[i]
		f.own = ownFolders.Replace(f.shipped)
		f.Path = f.own
		if f.State, err = e.lookAtHook(*f, f.own); err == nil && f.State == hookAbsent && f.own != f.shipped {
			if f.State, err = e.lookAtHook(*f, f.shipped); f.State != hookAbsent {
				f.Path = f.shipped
			}
		}
		if err != nil {
			return nil, fmt.Errorf("look at hook: %w", err)
		}
	}
	return files, err
}

// program is the path of kmodctl inside the root.
func (e *env) program() (string, error) {
	if e.root.IsHost() {
		return os.Executable()
	}
	for _, name := range []string{packagedProgram, "/usr/local/bin/kmodctl"} {
		if _, err := e.root.Path(name); err == nil {
			return name, nil
		}
	}
	return packagedProgram, nil
}

// lookAtHook is the state of f at a place inside the root.
func (e *env) lookAtHook(f hookFile, place string) (state string, err error) {
	dir, err := e.root.Path(path.Dir(place))
	if errors.Is(err, fs.ErrNotExist) {
		return hookAbsent, nil
	} else if err != nil {
		return "", err
	}
	file := filepath.Join(dir, path.Base(place))
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return hookAbsent, nil
	} else if err != nil {
		return "", err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		switch target, err := os.Readlink(file); {
		case err != nil:
			return "", err
		case target == os.DevNull:
			return hookOff, nil
		case f.link != "" && path.Base(target) == path.Base(f.link):
			return hookActive, nil
		}
		return hookForeign, nil
	}
	text, err := os.ReadFile(file)
	switch {
	case err != nil:
		return "", err
	case !strings.Contains(string(text), "/kmodctl hook "):
		return hookForeign, nil
	case f.script() && info.Mode()&0o111 == 0:
		return hookOff, nil
	case string(text) != f.text:
		return hookChanged, nil
	}
	return hookActive, nil
}

func (f hookFile) script() bool { return strings.HasPrefix(f.text, "#!") }

func (e *env) hooksStatus(files []hookFile) error {
	if e.json {
		return e.document("hooks", map[string]any{"hooks": orEmpty(files)})
	}
	t := e.table("SYSTEM", "FILE", "STATE")
	for _, f := range files {
		t.row(f.System, f.Path, f.State)
	}
	return t.flush()
}

// eachHook does something to every file, and goes on when one fails.
func (e *env) eachHook(files []hookFile, do func(hookFile) (done string, err error)) error {
	var errs []error
	any := false
	for _, f := range files {
		done, err := do(f)
		switch {
		case err != nil:
			errs = append(errs, err)
		case done == "":
		case e.dryRun:
			any = true
			e.would("%s", done)
		default:
			any = true
			e.changed("%s", done)
		}
	}
	if !any && len(errs) == 0 {
		e.say("nothing to do")
	}
	return errors.Join(errs...)
}

// installHook makes f active. Somebody else's file in its place is set aside.
func (e *env) installHook(f hookFile) (done string, err error) {
	masked := f.State == hookOff && f.Path == f.own
	if f.State == hookActive || f.State == hookChanged && f.Path == f.shipped && f.own != f.shipped {
		return "", nil // a package's own is as good
	}
	done = "installed " + f.own
	if f.State == hookForeign {
		done += ", and set aside what was there: " + f.own + setAside
	}
	if e.dryRun {
		return strings.Replace(done, "installed", "install", 1), nil
	}
	dir, err := e.inside(path.Dir(f.own))
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("install hook: %w", err)
	}
	file := filepath.Join(dir, path.Base(f.own))
	if f.State == hookForeign {
		if err := os.Rename(file, file+setAside); err != nil {
			return "", fmt.Errorf("install hook: %w", err)
		}
	}
	if masked {
		if state, err := e.lookAtHook(f, f.shipped); err == nil && state == hookActive && f.own != f.shipped {
			return "unmasked " + f.shipped, os.Remove(file)
		}
	}
	if err := f.write(file); err != nil {
		return "", fmt.Errorf("install hook %s: %w", f.own, err)
	}
	return done, nil
}

// write puts f at a path of the host, whole or not at all.
func (f hookFile) write(file string) error {
	temp := file + ".kmodctl-tmp" // a name that nobody runs
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var err error
	if f.link != "" {
		err = os.Symlink(f.link, temp)
	} else {
		mode := fs.FileMode(0o644)
		if f.script() {
			mode = 0o755
		}
		if err = os.WriteFile(temp, []byte(f.text), mode); err == nil {
			err = os.Chmod(temp, mode) // whatever the umask is
		}
	}
	if err == nil {
		err = os.Rename(temp, file)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// removeHook makes f absent, or off where a package has it, and puts back what was set aside.
func (e *env) removeHook(f hookFile) (done string, err error) {
	if !slices.Contains([]string{hookActive, hookChanged}, f.State) {
		return "", nil
	}
	mask := f.Path != f.own
	if mask && f.link != "" {
		return "", nil // the unit itself is masked
	}
	done = "removed " + f.Path
	if mask {
		done = "masked " + f.Path
	}
	if e.dryRun {
		return strings.Replace(strings.Replace(done, "removed", "remove", 1), "masked", "mask", 1), nil
	}
	dir, err := e.inside(path.Dir(f.own))
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, path.Base(f.own))
	if mask {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = os.Symlink(os.DevNull, file)
		}
	} else if err = os.Rename(file+setAside, file); err == nil {
		done += ", and put back what was there before"
	} else if errors.Is(err, fs.ErrNotExist) {
		err = os.Remove(file)
	}
	if err != nil {
		return "", fmt.Errorf("remove hook: %w", err)
	}
	return done, nil
}
