package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/ko"
)

func cmdInfo(e *env) *cli.Command {
	return &cli.Command{
		Name:      "info",
		Usage:     "print what modules say of themselves, whose they are, and whether they are live",
		ArgsUsage: "MODULE|FILE.ko ...",
		Description: examples("As modinfo; of modules that are built into the kernel too. live says whether the running kernel has it, and\n"+
			"whether that is another build than the file. With -v also the signature, and the symbols that it exports\n"+
			"and imports. -F takes any name before a colon, and prints the values alone.",
			"kmodctl info hello", "kmodctl info ./hello.ko -v", "kmodctl info -F vermagic hello stack", "kmodctl info -F filename e1000e -k 6.1.0-56-amd64"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "the module of kernel `RELEASE`; default: the running one, else the newest"},
			&cli.StringFlag{Name: "field", Aliases: []string{"F"}, Usage: "print only the values of `FIELD`, one a line"},
		},
		BashComplete: completeModules(e),
		Action: func(c *cli.Context) error {
			field := c.String("field")
			switch {
			case c.NArg() == 0:
				return usagef("info takes at least one module: kmodctl info NAME")
			case c.IsSet("field") && e.json:
				return usagef("info: --json prints all fields: choose between it and -F")
			case c.IsSet("field") && field == "":
				return usagef("info: the name of the field is empty (an unset variable?)")
			}
			return e.eachModule(c, func(m namedModule) error {
				if e.json {
					return e.document("info", infoDocument{m.path, m.path == "", m.pkg, m.live, m.Info})
				}
				shown, more := infoLines(m)
				if e.verbose || field != "" {
					shown = append(shown, more...)
				}
				for _, f := range shown {
					switch field {
					case "":
						fmt.Fprintf(e.out, "%-16s%s\n", f.Key+":", f.Value)
					case f.Key:
						fmt.Fprintln(e.out, f.Value)
					}
				}
				return nil
			})
		},
	}
}

// eachModule finds the modules and files that a command names, in its order, and stops at the first that is not there.
func (e *env) eachModule(c *cli.Context, do func(namedModule) error) error {
	args := c.Args().Slice()
	f, err := e.finder(c.Context, c.String("kernel"))
	if err == nil {
		defer f.close()
	} else if c.IsSet("kernel") || slices.ContainsFunc(args, isModuleName) {
		return err // files speak for themselves where there is no kernel
	}
	for _, arg := range args {
		m, err := f.find(arg)
		if err == nil {
			err = do(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// infoDocument is the document of info.
type infoDocument struct {
	File    string `json:"filename,omitempty"` // "" when it is built in
	Builtin bool   `json:"builtin,omitempty"`
	Package string `json:"package,omitempty"`
	Live    string `json:"live,omitempty"`
	*ko.Info
}

// perLine is how much of a signature modinfo(8) prints in a line: 20 bytes in hex.
const perLine = 20 * len("00:")

// infoLines are the lines of info, named as modinfo(8) does as far as it has them, and whether only -v shows them.
func infoLines(m namedModule) (all, more []ko.Field) {
	add := func(to *[]ko.Field, key, value string) {
		if value != "" {
			*to = append(*to, ko.Field{Key: key, Value: value})
		}
	}
	add(&all, "filename", cmp.Or(m.path, "(builtin)"))
	if m.path == "" {
		add(&all, "name", m.Name)
	}
	for _, f := range m.Fields {
		if f.Key != "parm" && f.Key != "parmtype" {
			all = append(all, f)
		}
	}
	add(&all, "arch", m.Arch)
	add(&all, "build-id", m.BuildID)
	if s := m.Signature; s != nil {
		add(&all, "sig_id", s.IDType)
		add(&all, "signer", s.Signer)
		add(&all, "sig_key", s.KeyID)
		add(&all, "sig_hashalgo", s.Hash)
		var lines []string
		for line := range slices.Chunk([]byte(s.Bytes), perLine) {
			lines = append(lines, string(line))
		}
		add(&more, "signature", strings.Join(lines, "\n\t\t"))
	}
	for _, p := range m.Params {
		all = append(all, ko.Field{Key: "parm", Value: paramText(p)})
	}
	add(&all, "package", m.pkg)
	add(&all, "live", m.live)
	for _, x := range m.Exports {
		kind := "EXPORT_SYMBOL"
		if x.GPL {
			kind += "_GPL"
		}
		add(&more, "export", strings.TrimSpace(fmt.Sprintf("0x%08x %s %s %s", x.CRC, x.Name, kind, x.Namespace)))
	}
	for _, i := range m.Imports {
		add(&more, "import", fmt.Sprintf("0x%08x %s", i.CRC, i.Name))
	}
	return all, more
}

// paramText is a parameter as modinfo(8) prints it, which does not know those that only the symbol table names.
func paramText(p ko.Param) string {
	switch {
	case p.Description == "" && p.Type == "":
		return p.Name
	case p.Description == "":
		return p.Name + ":" + p.Type
	case p.Type == "":
		return p.Name + ":" + p.Description
	}
	return p.Name + ":" + p.Description + " (" + p.Type + ")"
}
