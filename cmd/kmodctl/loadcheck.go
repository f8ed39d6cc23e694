package main

import (
	"crypto/x509"
	"errors"
	"slices"
	"sync"

	"kmodctl/internal/efi"
	"kmodctl/internal/ko"
	"kmodctl/loader"
)

// target is the kernel of a load, for a check.
func (l *loading) target() *loader.Target {
	t := loader.NewTarget(l.root, l.release, l.index, l.own.find, l.state)
	if l.state != nil {
		t.Trusted = sync.OnceValue(func() []*x509.Certificate { return firmwareTrust(efi.ReadState(l.root)) })
	}
	return t
}

// firmwareTrust are the certificates that a kernel takes from firmware and shim.
func firmwareTrust(s efi.State) (certs []*x509.Certificate) {
	for _, l := range s.Trusted() {
		certs = append(certs, l.Certificates()...)
	}
	return certs
}

// check keeps a plan from the kernel that it would refuse, and notes what it would not like.
func (l *loading) check(plan *loader.Plan) error {
	if l.unchecked {
		return nil
	}
	findings := l.allowed(loader.Check(plan, l.target()))
	for _, f := range findings {
		// That it is built outside of the kernel's tree is why people use this program.
		if f.Severity == loader.Warning && (f.Cause != loader.CauseTaint || l.verbose) {
			plan.Notes = append(plan.Notes, f.Module+": "+f.Text)
		}
	}
	return refusedBy(l.release, findings)
}

// allowed takes unknown parameters out of what is refused where somebody wishes to give them.
func (l *loading) allowed(findings []loader.Finding) []loader.Finding {
	for i, f := range findings {
		if l.anyParameters && f.Cause == loader.CauseParamUnknown {
			findings[i].Severity = loader.Warning
		}
	}
	return findings
}

// refusedBy is the error of findings, nil when none is a refusal.
func refusedBy(release string, findings []loader.Finding) error {
	refused := slices.DeleteFunc(slices.Clone(findings), func(f loader.Finding) bool { return f.Severity != loader.Refused })
	if len(refused) == 0 {
		return nil
	}
	return &loader.CheckError{Release: release, Findings: refused}
}

// unreadable is the plan of loading a file that cannot be planned for, since it is no module: nil when err says something else.
// It is for a check, which can tell why.
func unreadable(file string, err error) *loader.Plan {
	var format *ko.FormatError
	if !errors.As(err, &format) || !isModuleFile(file) || format.Path != file {
		return nil
	}
	name := ko.NameOfFile(file)
	return &loader.Plan{Asked: []string{name}, Steps: []loader.Step{{Action: loader.Insert, Module: name, Path: file, Reason: "asked"}}}
}

// explain adds to a kernel's refusal what can be told from files: the kernel says nothing of four in ten.
func (l *loading) explain(err error, plan *loader.Plan) {
	var refused *loader.KernelError
	if !errors.As(err, &refused) {
		return
	}
	target := l.target()
	target.Thorough = true
	refused.Explain(loader.Check(plan, target))
}

// ofPackage adds to a refusal the package that the module is of.
func (l *loading) ofPackage(err error) error {
	var refused *loader.KernelError
	var checked *loader.CheckError
	module := ""
	switch {
	case errors.As(err, &refused):
		module = refused.Module
	case errors.As(err, &checked):
		module = checked.Findings[0].Module
	}
	if module != "" && l.own.kept == nil && l.own.err == nil {
		l.own.open() // a file was named, and nothing was looked for
	}
	if pkg := l.own.packageOf(module); pkg != "" {
		return ofPackage{err, pkg}
	}
	return err
}
