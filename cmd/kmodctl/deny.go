package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

func cmdDeny(e *env) *cli.Command {
	return &cli.Command{
		Name:      "deny",
		Usage:     "forbid a module, with the reason that who wants to load it will read",
		ArgsUsage: "MODULE",
		Description: examples("Written to "+loader.ModprobeFile+", so that boot, udev and modprobe follow it too. It holds for dependencies and\n"+
			"soft dependencies of other modules. A module that is live stays so.",
			`kmodctl deny firewire_ohci --reason "DMA from outside"`, "kmodctl deny nouveau --reason 'we use the vendor driver' --dry-run"),
		Flags:        []cli.Flag{&cli.StringFlag{Name: "reason", Usage: "`TEXT` of one line"}},
		BashComplete: completeModules(e),
		Action: func(c *cli.Context) error {
			s, err := e.oneSetting(c)
			if err != nil {
				return err
			}
			reason := strings.TrimSpace(c.String("reason"))
			if reason == "" {
				return usagef("deny %s: give the reason, for whoever finds it refused: --reason TEXT", s.module)
			}
			if strings.ContainsFunc(reason, isControl) {
				return usagef("deny %s: the reason is one line", s.module)
			}
			if err := s.builtin(); err != nil {
				return err
			}
			err = s.rewrite(c.Context, loader.ModprobeFile, func(text []byte) ([]byte, error) { return loader.SetDeny(text, s.module, reason) })
			if err != nil {
				return err
			}
			if s.live() != "" {
				s.note("%s is loaded, and stays so until it is unloaded (kmodctl unload %s)", s.module, s.module)
			}
			return s.finish()
		},
	}
}

func cmdAllow(e *env) *cli.Command {
	return &cli.Command{
		Name:      "allow",
		Usage:     "take a deny back",
		ArgsUsage: "MODULE",
		Description: examples("What other files of modprobe.d and the kernel command line forbid stays forbidden, and is told.",
			"kmodctl allow firewire_ohci"),
		BashComplete: completeDenied(e),
		Action: func(c *cli.Context) error {
			s, err := e.oneSetting(c)
			if err != nil {
				return err
			}
			err = s.rewrite(c.Context, loader.ModprobeFile, func(text []byte) ([]byte, error) { return loader.UnsetDeny(text, s.module), nil })
			if err != nil {
				return err
			}
			config := s.config()
			denials := slices.DeleteFunc(config.Denials(s.module), func(d loader.Directive) bool { return isOurs(d.At, loader.ModprobeFile) })
			if len(denials) > 0 {
				if err := s.finish(); err != nil {
					return err
				}
				return stillDenied{s.module, denials[0]}
			}
			for _, d := range config.Blacklist {
				if d.Name == s.module && !isOurs(d.At, loader.ModprobeFile) {
					s.note("%s is blacklisted at %s, which keeps devices from loading it", s.module, d.At)
				}
			}
			if len(s.doc.Files) == 0 {
				s.note("%s was not denied", s.module)
			}
			return s.finish()
		},
	}
}

// stillDenied is a module that is forbidden by what kmodctl has not written.
type stillDenied struct {
	module string
	by     loader.Directive
}

func (s stillDenied) Error() string {
	return fmt.Sprintf("allow %s: it is denied at %s too, which kmodctl has not written", s.module, s.by.At)
}

// oneSetting is a setting of the one module that a command names.
func (e *env) oneSetting(c *cli.Context) (*setting, error) {
	name, err := oneArg(c, "module")
	if err != nil {
		return nil, err
	}
	return e.setting(c, name)
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
