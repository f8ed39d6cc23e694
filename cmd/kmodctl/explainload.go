package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"kmodctl/loader"
)

func cmdExplain(e *env) *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "tell why a module would load or would not, without loading it",
		ArgsUsage: "MODULE|ALIAS|FILE.ko [PARAMETER=VALUE ...]",
		Description: examples("The plan that load would carry out, and of each module in it all that the kernel would refuse it for:\n"+
			"its format, the kernel that it was built for, symbols, signature, policy, parameters. It is told from the\n"+
			"files and from Module.symvers of the kernel's headers; without headers, from the kernel's image, which\n"+
			"takes some seconds. What the module's own init will say cannot be known.\n\n"+
			"It exits with 0 when the module would load, and with 7 when not. docs/loader.md lists the causes.",
			"kmodctl explain hello", "kmodctl explain ./hello.ko -k 6.1.0-56-amd64", "kmodctl explain hello count=three --json"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "for kernel `RELEASE`; default: the running one"},
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("explain takes a module: kmodctl explain NAME [PARAMETER=VALUE ...]")
			}
			if err := checkParams(c.Args().First(), c.Args().Tail()); err != nil {
				return err
			}
			e.dryRun = true // nothing is loaded
			l, err := e.loading(c.Context, c.String("kernel"))
			if err != nil {
				return err
			}
			defer l.own.close()
			return l.ofPackage(l.explainPlan(c.Args().First(), c.Args().Tail()))
		},
	}
}

// explained is the document of an explanation.
type explained struct {
	Release  string            `json:"release"`
	Loads    bool              `json:"loads"`
	Plan     *loader.Plan      `json:"plan"`
	Findings []explainedDetail `json:"findings"`
}

type explainedDetail struct {
	loader.Finding
	Errno string `json:"errno,omitempty"` // its name
}

// explainPlan prints what a load would do and what would become of it.
func (l *loading) explainPlan(name string, params []string) error {
	plan, err := l.plan(name, params)
	if broken := unreadable(name, err); broken != nil {
		plan, err = broken, nil
	}
	if err != nil {
		return err
	}
	target := l.target()
	target.Thorough = true
	all := loader.Check(plan, target)
	for i, f := range all {
		if f.Cause == loader.CauseNoCapability && os.Geteuid() != 0 { // whoever asks here will load it as root
			all[i].Severity = loader.Warning
		}
	}
	refusal := refusedBy(l.release, all)
	if l.json {
		doc := explained{l.release, refusal == nil, plan, []explainedDetail{}}
		for _, f := range all {
			doc.Findings = append(doc.Findings, explainedDetail{f, unix.ErrnoName(f.Errno)})
		}
		if err := l.document("explain", doc); err != nil {
			return err
		}
		return refusal
	}
	l.printPlan(plan)
	for _, f := range all {
		fmt.Fprintf(l.out, "%s %s: %s (%s)\n", f.Severity, f.Module, f.Text, f.Cause)
		for _, fact := range f.Evidence {
			fmt.Fprintf(l.out, "  %s\n", fact)
		}
	}
	if refusal == nil {
		fmt.Fprintf(l.out, "%s would load into kernel %s\n", name, l.release)
	}
	return refusal
}
