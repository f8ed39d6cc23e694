package main

import (
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/dkms"
	"kmodctl/internal/kernel"
)

func cmdConvert(e *env) *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "print the kmod.toml that says what a dkms.conf says",
		ArgsUsage: "DIR|dkms.conf",
		Description: examples("What a kmod.toml cannot say is a comment in it, and so is what the dkms.conf says otherwise for other kernels of this machine. "+
			"Nothing needs it: a folder with a dkms.conf is built as it is.",
			"kmodctl convert .", "kmodctl convert /usr/src/v4l2loopback-0.12.7 >kmod.toml", "kmodctl convert -k 6.1.0-56-amd64 dkms.conf"),
		Flags: []cli.Flag{&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "as it is for this kernel `RELEASE` (default: the newest that has headers)"}},
		Action: func(c *cli.Context) error {
			arg, err := oneArg(c, "folder or dkms.conf")
			if err != nil {
				return err
			}
			if e.json {
				return usagef("convert has no --json")
			}
			return e.convert(c, arg, c.String("kernel"))
		},
	}
}

func (e *env) convert(c *cli.Context, file, release string) error {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		file = filepath.Join(file, dkms.ConfFile)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return err
	}
	k := e.anyKernel()
	if release != "" {
		if k, err = kernel.Get(e.root, release); err != nil {
			return err
		}
	}
	all, err := e.kernels(nil)
	if err != nil {
		return err
	}
	var others []kernel.Release
	for _, other := range all {
		if other.Tree != nil && other.Name != k.Name {
			others = append(others, other)
		}
	}
	toml, err := dkms.Convert(c.Context, dkms.Source{Dir: dir, Text: text}, k, others)
	if err == nil {
		_, err = e.out.Write(toml)
	}
	return err
}
