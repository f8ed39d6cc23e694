package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/loader"
)

func cmdDeps(e *env) *cli.Command {
	return &cli.Command{
		Name:      "deps",
		Usage:     "show what a module needs, or what needs it",
		ArgsUsage: "MODULE|ALIAS|FILE.ko",
		Description: examples("A tree of what load would insert on a kernel on which nothing is loaded yet; soft dependencies are\n"+
			"marked. With --reverse, of the modules that cannot be there without it, those too that were built and are not\n"+
			"installed. --dot prints it for Graphviz.",
			"kmodctl deps btrfs", "kmodctl deps drm --reverse", "kmodctl deps ./hello.ko --json", "kmodctl deps 8021q --dot | dot -Tsvg > 8021q.svg"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "the modules of kernel `RELEASE`; default: the running one, else the newest"},
			&cli.BoolFlag{Name: "reverse", Aliases: []string{"r"}, Usage: "show what needs the module"},
			&cli.BoolFlag{Name: "dot", Usage: "print a graph for dot(1)"},
		},
		BashComplete: completePackages(e),
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "module")
			if err != nil {
				return err
			}
			if c.Bool("dot") && e.json {
				return usagef("deps prints one of --dot and --json")
			}
			release := c.String("kernel")
			if release == "" {
				if release, err = e.defaultRelease(); err != nil {
					return err
				}
			}
			tree, err := e.tree(c, name, release, c.Bool("reverse"))
			switch {
			case err != nil:
				return err
			case e.json:
				return e.document("deps", struct {
					Release string `json:"release"`
					Reverse bool   `json:"reverse,omitempty"`
					loader.Tree
				}{release, c.Bool("reverse"), tree})
			case c.Bool("dot"):
				fmt.Fprint(e.out, dot(tree))
			default:
				p := treePrinter{tree: tree, reverse: c.Bool("reverse"), seen: map[string]bool{}}
				fmt.Fprint(e.out, p.print())
			}
			return nil
		},
	}
}

// tree is what a module needs, or what needs it. Nothing is loaded, and nothing refused.
func (e *env) tree(c *cli.Context, name, release string, reverse bool) (loader.Tree, error) {
	looking := *e
	looking.dryRun = true
	l, err := looking.loading(c.Context, release)
	if err != nil {
		return loader.Tree{}, err
	}
	defer l.own.close()
	l.state = nil
	l.config.Install, l.config.Barred, l.config.Blacklist = nil, nil, nil
	plan, err := l.plan(name, nil)
	if err != nil {
		return loader.Tree{}, err
	}
	if !reverse {
		return plan.Tree(), nil
	}
	others, err := l.own.uninstalled()
	if err != nil {
		return loader.Tree{}, err
	}
	return l.index.UserTree(plan.Asked, others), nil
}

// treePrinter writes a tree in lines. What a module has below it is written once.
type treePrinter struct {
	tree    loader.Tree
	reverse bool
	seen    map[string]bool
	text    strings.Builder
}

func (p *treePrinter) print() string {
	for _, root := range p.tree.Roots {
		p.branch(root, "", "")
	}
	return p.text.String()
}

func (p *treePrinter) branch(name, first, rest string) {
	line, below := first+name, p.below(name)
	if i := slices.IndexFunc(p.tree.Modules, func(m loader.TreeModule) bool { return m.Module == name }); i >= 0 {
		switch m := p.tree.Modules[i]; {
		case m.Path == "" && m.Reason != "":
			line += " (" + m.Reason + ")"
		case m.Optional:
			line += " (" + strings.SplitN(m.Reason, ",", 2)[0] + ")"
		}
	}
	if p.seen[name] && len(below) > 0 {
		line, below = line+" (see above)", nil
	}
	p.seen[name] = true
	p.text.WriteString(line + "\n")
	for i, b := range below {
		if i < len(below)-1 {
			p.branch(b, rest+"├─ ", rest+"│  ")
		} else {
			p.branch(b, rest+"└─ ", rest+"   ")
		}
	}
}

// below are the modules that a module needs, or that need it.
func (p *treePrinter) below(name string) (names []string) {
	for _, m := range p.tree.Modules {
		if !p.reverse && m.Module == name {
			return m.Needs
		}
		if p.reverse && slices.Contains(m.Needs, name) {
			names = append(names, m.Module)
		}
	}
	return names
}

// dot writes a tree in the language of Graphviz: an arrow leads to what is needed.
func dot(t loader.Tree) string {
	var text strings.Builder
	text.WriteString("digraph modules {\n\trankdir=LR;\n\tnode [shape=box];\n")
	for _, m := range t.Modules {
		var marks []string
		if slices.Contains(t.Roots, m.Module) {
			marks = append(marks, "bold")
		}
		if m.Optional {
			marks = append(marks, "dashed")
		}
		fmt.Fprintf(&text, "\t%q [style=%q];\n", m.Module, strings.Join(marks, ","))
		for _, need := range m.Needs {
			fmt.Fprintf(&text, "\t%q -> %q;\n", m.Module, need)
		}
	}
	return text.String() + "}\n"
}
