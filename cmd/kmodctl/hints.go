package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"kmodctl/build"
	"kmodctl/internal/dkms"
	"kmodctl/internal/efi"
	"kmodctl/internal/kernel"
	"kmodctl/internal/keys"
	"kmodctl/internal/vm"
	"kmodctl/loader"
	"kmodctl/registry"
)

// report prints an error for people: the error, the evidence, what to try. In one piece, since others may print too.
func (e *env) report(err error) {
	front := cmp.Or(e.front, "kmodctl: ")
	text := fmt.Sprintf("%s%v\n", front, err)
	var some partly
	switch advice := hints(err); {
	case errors.As(err, &some):
		text = fmt.Sprintf("%s%v\n", front, some) // each step's own error has been reported
	case e.brief:
		text = firstLine(strings.TrimSuffix(text, "\n"))
		if len(advice) > 0 {
			text += "; " + advice[len(advice)-1]
		}
		text += "\n"
	default:
		for _, line := range evidence(err) {
			text += "  " + line + "\n"
		}
		for _, hint := range advice {
			text += "  try:  " + hint + "\n"
		}
	}
	io.WriteString(e.err, text)
}

// consoleLines are the last lines of a dead guest's console that an error shows.
const consoleLines = 12

// stackLines are the innermost frames of a function that does not return, which an error shows.
const stackLines = 4

// stuckWords say what it means that a module's function does not return.
func stuckWords(s *loader.StuckError) string {
	state := map[string]string{loader.Insert: "coming", loader.Remove: "going"}[s.Op]
	if s.Died {
		return fmt.Sprintf("a fault in the module: it stays %q until the next boot, and so do the modules that it uses", state)
	}
	return fmt.Sprintf("the module waits for something: it stays %q until its function returns", state)
}

// evidence is what an error knows beyond its one line.
func evidence(err error) (lines []string) {
	var refused *loader.KernelError
	var checked *loader.CheckError
	var stuck *loader.StuckError
	var used *loader.InUseError
	var failed *build.Error
	var past failedBuild
	var dead *vm.Error
	switch {
	case errors.As(err, &refused):
		for _, l := range refused.Log {
			lines = append(lines, "kernel log: "+l)
		}
		if refused.Cause != "" {
			lines = append(lines, "why:  "+refused.Cause)
		}
	case errors.As(err, &checked):
		lines = why(checked)
	case errors.As(err, &stuck):
		for _, l := range stuck.Log {
			lines = append(lines, "kernel log: "+l)
		}
		for _, frame := range stuck.Stack[:min(len(stuck.Stack), stackLines)] {
			lines = append(lines, "it is in: "+frame)
		}
		lines = append(lines, "why:  "+stuckWords(stuck))
	case errors.As(err, &used):
		for _, u := range used.Users {
			lines = append(lines, "used by: "+u.String())
		}
	case errors.As(err, &failed):
		lines = append(lines, failed.Source...)
		if failed.Class != "" {
			lines = append(lines, "why:  "+failed.Class.Words())
		}
		if failed.Note != "" {
			lines = append(lines, "why:  "+failed.Note)
		}
		if errors.As(err, &past) {
			lines = append(lines, past.evidence()...)
		}
	case errors.As(err, &dead):
		all := strings.Split(strings.TrimSpace(dead.Console), "\n")
		for _, l := range all[max(0, len(all)-consoleLines):] {
			lines = append(lines, "console: "+l)
		}
	}
	return lines
}

// hints is advice: the libraries state facts only.
func hints(err error) []string {
	var (
		noSource *registry.NotFoundError
		noKernel *kernel.NotFoundError
		noModule *loader.NotFoundError
		manifest *build.ManifestError
		kbuild   *build.Error
		slow     *build.TimeLimitError
		refused  *loader.KernelError
		checked  *loader.CheckError
		policy   *loader.PolicyError
		command  commandError
		inUse    *loader.InUseError
		stuck    *loader.StuckError
		noWay    *loader.NoWayBackError
		damaged  *registry.CorruptError
		owned    *registry.OwnedError
		one      *registry.PackageError
		newer    newerOriginal
		pinned   otherPin
		first    *registry.NoPreviousError
		back     rollbackFailed
		broken   *registry.DamagedError
		differs  drifted
		missing  missingHeaders
		nolog    unlogged
		unbuilt  notBuilt
		exists   *registry.ExistsError
		exit     *exec.Error
		needs    *needsError
		conf     *configError
		param    *loader.ParamError
		late     loadTimeError
		denied   stillDenied
		notLive  *loader.NotLiveError
		noKey    noKeyError
		unsafe   *keys.UnsafeError
		unfit    *keys.MismatchError
		waits    *keys.WaitingError
		cannot   refusedKey

		uncheckable *build.CheckError
	)
	if errors.As(err, &back) { // without -k, the kernels that are done would go one further back
		again := "kmodctl " + rollbackOf(back.pkg, back.release)
		if errors.Is(err, unix.ENOSPC) {
			return []string{"make room, then " + again}
		}
		return append(hints(back.error), again)
	}
	switch {
	case errors.As(err, &needs) && errors.As(err, &noSource):
		return []string{"kmodctl add DIR (the folder of " + needs.name + ")"}
	case errors.As(err, &noSource) && len(noSource.Near) > 0:
		if noSource.Version != "" {
			return nearest(noSource.Name+"@", noSource.Near)
		}
		return nearest("", noSource.Near)
	case errors.As(err, &noSource) && isFolder(noSource.Name):
		return []string{"kmodctl build ./" + noSource.Name + " (a folder has a slash)"}
	case errors.As(err, &noSource):
		return []string{"kmodctl add DIR (a folder that holds a kmod.toml)", "kmodctl status (what is registered)"}
	case errors.As(err, &noKernel):
		if strings.Contains(noKernel.Name, ",") {
			return []string{"-k once for each release: -k A -k B"}
		}
		return append(nearest("-k ", noKernel.Near), "kmodctl kernels (what this machine has)")
	case errors.As(err, &noModule):
		return append(nearest("", noModule.Near), "kmodctl status (what is built for "+noModule.Release+")")
	case errors.As(err, &param) && param.Near != "":
		return nearest("", []string{param.Near})
	case errors.As(err, &param) && param.Err == nil:
		return []string{"kmodctl params " + param.Module}
	case errors.As(err, &denied):
		return []string{"take that line away, or load it by name all the same: kmodctl load --ignore-install " + denied.module + " " + denied.module}
	case errors.As(err, &late):
		return []string{late.remedy()}
	case errors.As(err, &policy) && policy.Boot:
		return []string{"boot without " + policy.Rule}
	case errors.As(err, &policy) && strings.HasPrefix(policy.Rule, "blacklist"):
		return []string{"kmodctl load " + policy.Module + " (by its own name: blacklist takes the aliases away)"}
	case errors.As(err, &policy) && strings.HasPrefix(policy.At, loader.ModprobeFile+":"):
		return []string{"kmodctl allow " + policy.Module}
	case errors.As(err, &policy) && strings.HasPrefix(policy.Rule, "install"):
		return []string{"--ignore-install " + policy.Module + " loads it this once; the line at " + policy.At + " forbids it for good"}
	case errors.As(err, &command):
		return []string{"--run-commands runs it, --ignore-install " + command.module + " loads the module instead"}
	case errors.As(err, &missing):
		return missing.remedies()
	case errors.As(err, &noKey):
		return []string{"kmodctl key list"}
	case errors.Is(err, keys.ErrNoKey):
		return []string{"kmodctl key new", "kmodctl key import (lists the keys that other tools have on this machine)"}
	case errors.Is(err, keys.ErrEncrypted):
		return []string{"run it in a terminal, or with " + passphraseVariable + "=FILE (its first line is the passphrase)"}
	case errors.As(err, &unsafe):
		return []string{"chown root " + unsafe.File + " && chmod 600 " + unsafe.File + ", if nobody else can have had it; a key that others had is to be replaced"}
	case errors.As(err, &unfit):
		return []string{"the certificate that was made with the key: kmodctl key import lists the pairs of this machine"}
	case errors.As(err, &waits):
		return []string{"kmodctl key rotate --now (" + waits.Name + " signs from now on), then import it"}
	case errors.Is(err, efi.ErrNotMounted):
		return []string{"mount -t efivarfs efivarfs /sys/firmware/efi/efivars"}
	case errors.Is(err, efi.ErrLeaving):
		return []string{"mokutil --revoke-delete takes that request back"}
	case errors.Is(err, errNoUEFI):
		return []string{"kmodctl secureboot (whether this machine's kernels want signatures at all)"}
	case errors.As(err, &conf):
		return []string{"docs/config.md lists every key"}
	case errors.As(err, &manifest):
		return []string{"docs/manifest.md lists every key; kmodctl new NAME writes a manifest that works"}
	case errors.As(err, &refused), errors.As(err, &checked): // before the errnos, which mean other things here
		return causeHints(err)
	case errors.Is(err, unix.ENOSPC):
		return []string{"make room, then run the same command again"}
	case errors.As(err, &nolog) && errors.As(err, &kbuild):
		return append(buildHints(err), "the same command with -v prints the whole log of the build")
	case errors.As(err, &exists):
		return []string{fmt.Sprintf("kmodctl remove %s@%s, then import it", exists.Name, exists.Version)}
	case errors.As(err, &unbuilt):
		return []string{"kmodctl build " + unbuilt.name}
	case errors.As(err, &slow) && errors.As(err, &kbuild):
		return []string{fmt.Sprintf("kmodctl build %s -k %s --time-limit %v", kbuild.Package, kbuild.Release, 2*slow.Limit)}
	case errors.As(err, &kbuild):
		return append(buildHints(err), fmt.Sprintf("kmodctl log %s -k %s", kbuild.Package, kbuild.Release))
	case errors.As(err, &inUse):
		if len(inUse.Holders) > 0 {
			return []string{"kmodctl unload --with-holders " + inUse.Module + " (they go too)"}
		}
		return append(usersHints(inUse.Users), "kmodctl unload "+inUse.Module+" --wait 30s")
	case errors.As(err, &stuck) && stuck.Died:
		return []string{"kmodctl run DIR tries the module in a virtual machine", "reboot, to be rid of it"}
	case errors.As(err, &stuck):
		return []string{"kmodctl log --dmesg " + stuck.Module, fmt.Sprintf("--timeout %v, if the module may take that long", 2*stuck.Waited.Round(time.Second))}
	case errors.As(err, &notLive):
		return []string{"kmodctl load " + notLive.Module}
	case errors.As(err, &noWay):
		return []string{"kmodctl reload " + noWay.Module + " --force, if the new file is sure to load"}
	case errors.Is(err, loader.ErrLocked):
		return []string{"run it again, or with a longer --lock-timeout"}
	case errors.Is(err, loader.ErrNoModules):
		return []string{"kmodctl run DIR loads it into a kernel of its own, in a virtual machine"}
	case errors.Is(err, loader.ErrNoCapability):
		return []string{"run it as root: sudo kmodctl ..."}
	case errors.Is(err, loader.ErrModulesDisabled):
		return []string{"reboot: kernel.modules_disabled cannot be taken back"}
	case errors.As(err, &first):
		return []string{"kmodctl history " + first.Package}
	case errors.As(err, &pinned):
		return []string{pinned.remedy()}
	case errors.As(err, &cannot):
		return []string{cannot.remedy()}
	case errors.As(err, &newer):
		return []string{fmt.Sprintf("kmodctl install %s@%s -k %s --force", newer.art.Package, newer.art.Version, newer.art.Release)}
	case errors.As(err, &owned):
		return []string{"kmodctl uninstall " + owned.Owner}
	case errors.As(err, &differs):
		return []string{"kmodctl repair --dry-run (what can be mended, and how)"}
	case errors.As(err, &damaged), errors.As(err, &broken):
		return []string{"kmodctl repair (kmodctl verify shows all that is damaged)"}
	case errors.Is(err, registry.ErrNoDepmod):
		return []string{"apt install kmod (or your distribution's package of depmod)"}
	case errors.Is(err, vm.ErrNoQEMU):
		return []string{"apt install qemu-system-x86"}
	case errors.As(err, &exit) && (exit.Name == build.CheckSparse || exit.Name == "perl"):
		return []string{"apt install " + exit.Name}
	case errors.As(err, &uncheckable) && uncheckable.Tool == build.CheckCheckpatch:
		return []string{"the headers of another distribution (Fedora's kernel-devel), or a kernel's own source as its build tree"}
	case errors.As(err, &uncheckable):
		return []string{"kmodctl build --check sparse"}
	case errors.As(err, &exit) && exit.Name == "make":
		return []string{"apt install make gcc"}
	case errors.Is(err, unix.EROFS):
		return []string{"mount the file system read-write, or build without installing: --no-install"}
	case errors.As(err, &one) && errors.Is(err, fs.ErrNotExist): // a blob that is gone
		return []string{"kmodctl repair (kmodctl verify shows all that is damaged)"}
	case errors.Is(err, fs.ErrPermission) && os.Getuid() != 0: // root may have more against it than its name
		return []string{"run it as root: sudo kmodctl ..."}
	}
	return nil
}

// usersHints is how to make the users of a module let it go.
func usersHints(users []loader.User) (lines []string) {
	add := func(line string) {
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	for _, u := range users {
		switch u.Kind {
		case loader.UserProcess:
			add(fmt.Sprintf("end process %d (%s)", u.PID, u.Command))
		case loader.UserMount:
			add("umount " + u.Name)
		case loader.UserInterface:
			add("ip link set " + u.Name + " down")
		}
	}
	return lines
}

// buildHints is advice by the class of a failed build.
func buildHints(err error) []string {
	var failed *build.Error
	var past failedBuild
	if !errors.As(err, &failed) {
		return nil
	}
	errors.As(err, &past)
	switch failed.Class {
	case build.ClassAPI, build.ClassSymbol, build.ClassNamespace:
		newer := "a newer version of " + failed.Package
		switch {
		case past.lastRelease != "":
			return []string{fmt.Sprintf("%s; until there is one, boot %s (kmodctl build %s -k %[2]s)", newer, past.lastRelease, failed.Package)}
		case past.lastVersion != "":
			return []string{newer + ", or", fmt.Sprintf("kmodctl build %s@%s -k %s", failed.Package, past.lastVersion, failed.Release)}
		}
		return []string{newer}
	case build.ClassHeader:
		p, _ := build.ProviderOf(failed.Header)
		install := fmt.Sprintf("apt install %s, or dnf install %s", p.Debian, p.Fedora)
		if p == build.CLibrary {
			return []string{"in a module <linux/...> headers: it has no C library", "for a program of the build " + install}
		}
		return []string{install}
	case build.ClassCompiler:
		return []string{"install the compiler that the kernel was built with (kmodctl kernels --json names it)"}
	case build.ClassConfig:
		return []string{"a kernel that has the option; config = [\"...\"] below [kernel] in kmod.toml passes over the others"}
	case build.ClassLicense:
		return []string{`MODULE_LICENSE("GPL"), where that is its license`}
	case build.ClassWerror:
		return []string{"ccflags-y += -Wno-error in the source's Kbuild file, until the warning is mended"}
	case build.ClassBTF:
		return []string{"apt install pahole, or dnf install dwarves; if it is there, install the kernel's headers again"}
	case build.ClassMemory:
		return []string{"free memory or add swap, then run the same command again"}
	case build.ClassPatch:
		return []string{"release = \"...\" beside the patch in kmod.toml names the kernels that it is for"}
	}
	return nil
}

// isFolder reports whether a folder of that name holds a manifest.
func isFolder(name string) bool {
	_, toml := os.Stat(filepath.Join(name, build.ManifestFile))
	_, conf := os.Stat(filepath.Join(name, dkms.ConfFile))
	return toml == nil || conf == nil
}

// nearest are names that may have been meant.
func nearest(prefix string, names []string) (lines []string) {
	for _, n := range names {
		lines = append(lines, prefix+n+" (the nearest name)")
	}
	return lines
}

// missingHeaders is a build for a kernel that cannot be built for.
type missingHeaders struct{ kernel.Release }

func (m missingHeaders) Error() string { return "build for " + m.Name + ": " + m.what() }

// what names all that is missing.
func (m missingHeaders) what() string {
	var what []string
	for _, x := range m.Missing {
		what = append(what, x.What)
	}
	return strings.Join(what, "; ")
}

func (m missingHeaders) remedies() (lines []string) {
	for _, x := range m.Missing {
		switch {
		case x.Remedy != "":
			lines = append(lines, x.Remedy)
		case x.Package != "":
			lines = append(lines, "--headers FILE too, the package "+x.Package+" (apt download "+x.Package+")")
		}
	}
	return lines
}
