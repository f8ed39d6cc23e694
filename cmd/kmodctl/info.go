package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/internal/ko"
	"kmodctl/loader"
)

func cmdInfo(e *env) *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "print what a module's file says of itself",
		ArgsUsage: "MODULE|FILE.ko",
		Description: examples("As modinfo, and with -v the symbols that it exports and imports.",
			"kmodctl info hello", "kmodctl info ./hello.ko -v", "kmodctl info e1000e -k 6.1.0-56-amd64 --json"),
		Flags:        []cli.Flag{&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "the module of kernel `RELEASE`; default: the running one, else the newest"}},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			arg, err := oneArg(c, "module")
			if err != nil {
				return err
			}
			release := c.String("kernel")
			if release != "" {
				if _, err := kernel.Get(e.root, release); err != nil {
					return err
				}
			} else if !isModuleFile(arg) {
				if release, err = e.defaultRelease(); err != nil {
					return err
				}
			}
			path, err := e.moduleFile(c.Context, arg, release)
			if err != nil {
				return err
			}
			info, err := ko.Open(path)
			if err != nil {
				return err
			}
			if e.json {
				return e.document("info", struct {
					File string `json:"filename"`
					*ko.Info
				}{path, info})
			}
			e.printInfo(path, info)
			return nil
		},
	}
}

// defaultRelease is the running kernel's where it has modules, else the newest
// kernel of the machine.
func (e *env) defaultRelease() (string, error) {
	all, err := kernel.Find(e.root)
	if err != nil {
		return "", err
	}
	name := ""
	for _, k := range all {
		if k.Running && k.Modules != "" {
			return k.Name, nil
		}
		if k.Modules != "" {
			name = k.Name
		}
	}
	if name == "" {
		return "", fmt.Errorf("find kernels: none in /lib/modules of %s", e.root)
	}
	return name, nil
}

func (e *env) printInfo(path string, info *ko.Info) {
	line := func(key, value string) { fmt.Fprintf(e.out, "%-16s%s\n", key+":", value) }
	line("filename", path)
	for _, f := range info.Fields {
		if f.Key != "parm" && f.Key != "parmtype" {
			line(f.Key, f.Value)
		}
	}
	line("arch", info.Arch)
	if info.BuildID != "" {
		line("build-id", info.BuildID)
	}
	if s := info.Signature; s != nil {
		line("sig_id", s.IDType)
		line("signer", s.Signer)
		line("sig_key", s.KeyID)
		line("sig_hashalgo", s.Hash)
	}
	for _, p := range info.Params {
		text := p.Name
		if p.Description != "" {
			text += ": " + p.Description
		}
		line("parm", strings.TrimSpace(text+" ("+p.Type+")"))
	}
	if !e.verbose {
		return
	}
	for _, x := range info.Exports {
		kind := "EXPORT_SYMBOL"
		if x.GPL {
			kind += "_GPL"
		}
		line("export", strings.TrimSpace(fmt.Sprintf("0x%08x %s %s %s", x.CRC, x.Name, kind, x.Namespace)))
	}
	for _, i := range info.Imports {
		line("import", fmt.Sprintf("0x%08x %s", i.CRC, i.Name))
	}
}

// moduleFile is the .ko that NAME or a path on the command line means.
func (e *env) moduleFile(ctx context.Context, arg, release string) (string, error) {
	if isModuleFile(arg) {
		if _, err := os.Stat(arg); err != nil {
			return "", err
		}
		return arg, nil
	}
	reg, err := e.reader(ctx)
	if err != nil {
		return "", err
	}
	defer reg.Close()
	kept, err := e.modulesOf(reg, release)
	if err != nil {
		return "", err
	}
	if path, ok := kept.find(arg); ok {
		return path, nil
	}
	index, err := e.index(release)
	if err != nil {
		return "", err
	}
	path, _, ok := index.Find(arg)
	if !ok {
		return "", &loader.NotFoundError{Name: arg, Release: release, Near: index.Near(arg)}
	}
	return path, nil
}
