package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"kmodctl/internal/kernel"
	"kmodctl/loader"
)

func cmdCompletion(e *env) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell",
		ArgsUsage: "bash|zsh|fish",
		Description: examples("The scripts ask kmodctl itself, so names of packages and modules are completed too.",
			"source <(kmodctl completion bash)", "kmodctl completion fish > ~/.config/fish/completions/kmodctl.fish"),
		BashComplete: func(*cli.Context) { fmt.Fprintln(e.out, "bash\nzsh\nfish") },
		Action: func(c *cli.Context) error {
			shell, err := oneArg(c, "shell")
			if err != nil {
				return err
			}
			script, ok := completionScripts[shell]
			if !ok {
				return usagef("completion: no script for shell %q (bash, zsh, fish)", shell)
			}
			_, err = fmt.Fprint(e.out, script)
			return err
		},
	}
}

var completionScripts = map[string]string{
	"bash": `_kmodctl() {
	local cur=${COMP_WORDS[COMP_CWORD]}
	local words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	[[ $cur == -* ]] && words+=("$cur")
	local IFS=$'\n'
	COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _kmodctl kmodctl
`,
	"zsh": `#compdef kmodctl
_kmodctl() {
	local -a out
	local cur=${words[CURRENT]}
	local -a cmd=(${words[1,CURRENT-1]})
	[[ $cur == -* ]] && cmd+=($cur)
	out=(${(f)"$(${cmd} --generate-bash-completion 2>/dev/null)"})
	compadd -a out || _files
}
compdef _kmodctl kmodctl
`,
	"fish": `function __kmodctl_complete
	set -l cmd (commandline -opc)
	set -l cur (commandline -ct)
	string match -q -- '-*' $cur; and set -a cmd $cur
	$cmd --generate-bash-completion 2>/dev/null
end
complete -c kmodctl -a '(__kmodctl_complete)'
`,
}

// completing prints what a word that begins with - or stands behind -k can be, and
// reports whether it did: urfave/cli v2 completes flags only for a command without
// an own completion, and values never.
func completing(c *cli.Context, e *env) bool {
	if err := e.setUp(c); err != nil { // completion comes before it
		return true
	}
	last := os.Args[len(os.Args)-2] // before --generate-bash-completion
	switch {
	case last == "-k" || last == "--kernel":
		all, err := kernel.Find(e.root)
		if err != nil {
			return true
		}
		for _, k := range all {
			fmt.Fprintln(e.out, k.Name)
		}
	case strings.HasPrefix(last, "-"):
		for _, f := range append(c.Command.Flags, c.App.Flags...) {
			for _, name := range f.Names() {
				if len(name) > 1 {
					fmt.Fprintln(e.out, "--"+name)
				}
			}
		}
	default:
		return false
	}
	return true
}

// completePackages offers the names of registered packages.
func completePackages(e *env) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		if completing(c, e) {
			return
		}
		reg, err := e.reader(c.Context)
		if err != nil {
			return
		}
		defer reg.Close()
		sources, err := newest(reg)
		if err != nil {
			return
		}
		for _, s := range sources {
			fmt.Fprintln(e.out, s.Name)
		}
	}
}

// completeLive offers the modules that are loaded.
func completeLive(e *env) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		if completing(c, e) {
			return
		}
		state, err := loader.ReadState(e.root)
		if err != nil {
			return
		}
		for _, m := range state.Modules {
			fmt.Fprintln(e.out, m.Name)
		}
	}
}

// completeModules offers the modules of the kernel that a command is about: the registry's and the kernel's own.
func completeModules(e *env) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		if completing(c, e) {
			return
		}
		f, err := e.finder(c.Context, c.String("kernel"))
		if err != nil {
			return
		}
		defer f.close()
		names := f.index.Names()
		for name := range f.kept.modules {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			fmt.Fprintln(e.out, name)
		}
	}
}

// completeParams offers modules, and behind a module its parameters.
func completeParams(e *env) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		if c.NArg() == 0 {
			completeModules(e)(c)
			return
		}
		if completing(c, e) {
			return
		}
		m, live, err := e.paramsOf(c.Context, c.Args().First())
		if err != nil {
			return
		}
		for _, p := range withValues(m.Params, live) {
			fmt.Fprintln(e.out, p.Name+"=")
		}
	}
}

// completeDenied offers the modules that kmodctl deny has forbidden.
func completeDenied(e *env) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		if completing(c, e) {
			return
		}
		for _, d := range loader.ReadConfig(e.root, false).Install {
			if isOurs(d.At, loader.ModprobeFile) {
				fmt.Fprintln(e.out, d.Name)
			}
		}
	}
}
