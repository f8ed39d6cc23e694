package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/loader"
)

// setting is a command that tells boot, udev and modprobe something about one module.
type setting struct {
	*env
	command string // "deny"
	module  string
	known   []knownModule
	doc     settingDocument
}

// settingDocument is what such a command prints.
type settingDocument struct {
	DryRun  bool         `json:"dry_run"`
	Module  string       `json:"module"`
	Files   []fileChange `json:"files"`
	Options []optionLine `json:"options,omitempty"`
	Notes   []string     `json:"notes,omitempty"`
}

// fileChange are the lines that went from a file and came to it.
type fileChange struct {
	Path    string   `json:"path"`
	Removed []string `json:"removed,omitempty"`
	Added   []string `json:"added,omitempty"`
}

// optionLine is an option that a load gives to a module, and where it stands.
type optionLine struct {
	Option string `json:"option"`
	At     string `json:"at"`
	Loses  bool   `json:"loses,omitempty"` // to a later one of its name
}

// knownModule is the module as one kernel of the machine has it.
type knownModule struct {
	release string
	namedModule
}

// setting looks for the module in all kernels of the machine. A name that none has is noted, since its package may come yet.
func (e *env) setting(c *cli.Context, name string) (*setting, error) {
	if err := loader.CheckName(name); err != nil {
		return nil, usageError{err.Error()}
	}
	s := &setting{env: e, command: c.Command.Name, module: ko.NormalizeName(name)}
	s.doc = settingDocument{DryRun: e.dryRun, Module: s.module, Files: []fileChange{}}
	kernels, err := kernel.Find(e.root)
	if err != nil {
		return nil, err
	}
	var near []string
	for _, k := range slices.Backward(kernels) {
		if k.Modules == "" {
			continue
		}
		f, err := e.finder(c.Context, k.Name)
		if err != nil {
			return nil, err
		}
		m, err := f.find(name)
		f.close()
		var absent *loader.NotFoundError
		switch {
		case errors.As(err, &absent):
			near = append(near, absent.Near...)
		case err != nil:
			s.note("%v", err)
		default:
			s.known = append(s.known, knownModule{k.Name, m})
		}
	}
	if len(s.known) == 0 {
		s.note("no kernel of this machine has a module %s%s", s.module, nearestOf(s.module, near))
	}
	return s, nil
}

func (s *setting) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(s.doc.Notes, text) {
		s.doc.Notes = append(s.doc.Notes, text)
	}
}

// builtin is an error where every kernel that knows the module has it in its image.
func (s *setting) builtin() error {
	if len(s.known) == 0 || slices.ContainsFunc(s.known, func(k knownModule) bool { return k.path != "" }) {
		return nil
	}
	return fmt.Errorf("%s %s: %w", s.command, s.module, loader.ErrBuiltin)
}

// check holds parameters against the module of each kernel: one that takes them is enough.
func (s *setting) check(params []string) error {
	for _, p := range params {
		var first error
		taken := len(s.known) == 0
		for _, k := range s.known {
			err := loader.CheckParam(k.Info, p)
			taken = taken || err == nil
			if err != nil && first == nil {
				first = err
			}
		}
		if !taken {
			return first
		}
	}
	return nil
}

// rewrite edits a file of settings, or says what would be edited.
func (s *setting) rewrite(ctx context.Context, file string, edit func([]byte) ([]byte, error)) error {
	r, err := loader.Rewrite(ctx, s.root, file, s.dryRun, edit)
	if err != nil || !r.Changed() {
		return err
	}
	change := fileChange{Path: file}
	change.Removed, change.Added = lineDiff(string(r.Old), string(r.New))
	s.doc.Files = append(s.doc.Files, change)
	if !s.dryRun {
		s.changed("wrote %s", file)
		return nil
	}
	s.would("--- %s\n+++ %s", file, file)
	for _, line := range change.Removed {
		s.would("-%s", line)
	}
	for _, line := range change.Added {
		s.would("+%s", line)
	}
	return nil
}

// lineDiff are the lines between those that two texts have in common at their ends.
func lineDiff(old, new string) (removed, added []string) {
	removed, added = textLines(old), textLines(new)
	for len(removed) > 0 && len(added) > 0 && removed[0] == added[0] {
		removed, added = removed[1:], added[1:]
	}
	for len(removed) > 0 && len(added) > 0 && removed[len(removed)-1] == added[len(added)-1] {
		removed, added = removed[:len(removed)-1], added[:len(added)-1]
	}
	return removed, added
}

func textLines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// config is what modprobe.d says now, and what of it cannot be read.
func (s *setting) config() *loader.Config {
	return loader.ReadConfig(s.root, s.root.IsHost())
}

// isOurs tells a line of our own file by its place, FILE:LINE.
func isOurs(at, file string) bool { return strings.HasPrefix(at, file+":") }

// live is the state of the module in the running kernel, "" when it is not loaded.
func (s *setting) live() string {
	for _, k := range s.known {
		if k.namedModule.live != "" {
			return k.namedModule.live
		}
	}
	return ""
}

// finish tells what is to be told, or prints the document.
func (s *setting) finish() error {
	if len(s.doc.Files) > 0 {
		s.noteInitramfs()
	}
	for _, note := range s.doc.Notes {
		s.say("note: %s", note)
	}
	if s.json {
		return s.document(s.command, s.doc)
	}
	if len(s.doc.Files) == 0 && s.dryRun {
		s.say("nothing would change")
	}
	return nil
}

// noteInitramfs tells of each initramfs that holds the module: it has a copy of modprobe.d as it was when it was made.
func (s *setting) noteInitramfs() {
	for _, k := range s.known {
		image, err := s.initramfsOf(k.release)
		if err != nil || image == "" || k.path == "" {
			continue
		}
		holds, err := loader.InInitramfs(image, s.module)
		if err != nil { // in a form that is not known here
			s.note("whether the module is in the initramfs of %s is not known: %v", k.release, err)
		}
		if remake := s.remakeCommand(k.release); holds && remake != nil {
			s.note("the initramfs of %s holds %s, with the settings of before: %s", k.release, s.module, strings.Join(remake, " "))
		}
	}
}

// laterFile reports whether modprobe reads the file of a line after ours: by its name, in whatever folder it is.
func laterFile(at string) bool {
	file, _, ok := strings.Cut(at, ":")
	return !ok || path.Base(file) > path.Base(loader.ModprobeFile)
}
