package main

import (
	"errors"
	"fmt"

	"kmodctl/loader"
)

// causeHints is advice on what a module that a kernel refuses, or would refuse, lacks.
func causeHints(err error) []string {
	var (
		refused *loader.KernelError
		checked *loader.CheckError
		ours    ofPackage
	)
	module, release, cause, builtFor := "", "", loader.CauseID(""), ""
	switch {
	case errors.As(err, &refused):
		module, release, cause, builtFor = refused.Module, refused.Release, refused.CauseID, refused.BuiltFor
	case errors.As(err, &checked):
		first := checked.Findings[0]
		module, release, cause = first.Module, checked.Release, first.Cause
	default:
		return nil
	}
	sign := "kmodctl sign FILE.ko"
	build := "kmodctl build DIR -k " + release + " (the folder of its source)"
	if errors.As(err, &ours) {
		build = "kmodctl build " + ours.pkg + " -k " + release
		sign = "kmodctl resign " + ours.pkg
		if builtFor != "" && builtFor != release {
			return []string{build}
		}
	}
	advice := adviceOn(cause, module, build, sign)
	if checked != nil && checked.Unwrap() == nil {
		advice = append(advice, "load or reload --unchecked asks the kernel all the same")
	}
	return advice
}

// adviceOn is what to do about a cause; build is the command that builds the module again, sign the one that signs it.
func adviceOn(cause loader.CauseID, module, build, sign string) []string {
	switch cause {
	case loader.CauseOtherKernel, loader.CauseStructSize, loader.CauseModuleLayout, loader.CauseVermagic, loader.CauseSymbolCRC, loader.CauseBTF,
		loader.CauseArch, loader.CauseTruncated, loader.CauseMalformed, loader.CauseStripped, loader.CauseNoModversions, loader.CauseRelocation:
		return []string{build}
	case loader.CauseNoSymbolCRC:
		return []string{`needs = ["..."] below [build] in kmod.toml names the package whose symbols it uses`, build}
	case loader.CauseSymbolMissing:
		return []string{"kmodctl info " + module + " -v (all that it imports)"}
	case loader.CauseGPLOnly:
		return []string{`MODULE_LICENSE("GPL"), where that is its license`}
	case loader.CauseNamespace:
		return []string{"MODULE_IMPORT_NS in its source, for the namespace"}
	case loader.CauseUnsigned, loader.CauseUnknownKey, loader.CauseLockdown:
		return []string{sign + " signs it with this machine's key", "kmodctl key enroll has the firmware trust that key, from the next boot on", "kmodctl secureboot (which keys are trusted, and what is next)"}
	case loader.CauseSignatureKind:
		return []string{"sign it with RSA and sha256, which every kernel knows"}
	case loader.CauseSignatureDiffers, loader.CauseSignatureDamaged:
		return []string{sign + " signs it again: nothing may change a module behind its signature, strip least of all"}
	case loader.CauseBlacklisted:
		return []string{"take " + module + " out of module_blacklist= on the kernel command line, and reboot"}
	case loader.CauseModulesDisabled:
		return []string{"reboot: kernel.modules_disabled cannot be taken back"}
	case loader.CauseNoCapability:
		return []string{"run it as root: sudo kmodctl ..."}
	case loader.CauseParamUnknown:
		return []string{"kmodctl info " + module + " (its parameters)", "kmodctl load --allow-unknown-parameters gives it all the same"}
	case loader.CauseParamValue, loader.CauseParamLength, loader.CauseParamCount:
		return []string{"kmodctl info " + module + " (its parameters and their types)"}
	case loader.CauseFileBusy:
		return []string{"end what has the file open for writing, then load it again"}
	}
	return nil
}

// why are the lines of a check's findings below its error.
func why(e *loader.CheckError) (lines []string) {
	const few = 5
	for i, f := range e.Findings {
		about := ""
		if f.Module != e.Findings[0].Module {
			about = f.Module + ": "
		}
		lines = append(lines, "why:  "+about+f.Text)
		if i > 0 {
			continue
		}
		for _, fact := range f.Evidence[:min(len(f.Evidence), few)] {
			lines = append(lines, "found: "+fact)
		}
		if n := len(f.Evidence) - few; n > 0 {
			lines = append(lines, fmt.Sprintf("found: %d more", n))
		}
	}
	if e.Findings[0].Errno == 0 || e.Unwrap() != nil { // the error's own line has said it
		lines = lines[1:]
	}
	return lines
}
