package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var manuals = flag.String("man", "", "write man pages to this folder")

// TestManPages makes the man pages from the commands, and has groff read them.
func TestManPages(t *testing.T) {
	dir := *manuals
	if dir == "" {
		dir = t.TempDir()
	}
	writeManPages(t, dir)
	pages, _ := filepath.Glob(filepath.Join(dir, "*.8"))
	if len(pages) < 20 {
		t.Fatalf("%d man pages", len(pages))
	}
	out, err := exec.Command("groff", append([]string{"-man", "-Tutf8", "-ww", "-z"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

func writeManPages(t testing.TB, dir string) {
	t.Helper()
	app := newApp(&env{out: io.Discard, err: newScreen(io.Discard)})
	pages := map[string]string{"kmodctl": manOf(app)}
	for _, c := range app.Commands {
		if !c.Hidden {
			pages["kmodctl-"+c.Name] = manOfCommand(app, c)
		}
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name+".8"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func manOf(app *cli.App) string {
	var b strings.Builder
	manHead(&b, "kmodctl", app.Usage, "[FLAG ...] COMMAND [ARGUMENT ...]")
	manText(&b, app.Description)
	b.WriteString(".SH COMMANDS\n")
	for _, c := range app.Commands {
		if !c.Hidden {
			fmt.Fprintf(&b, ".TP\n.BR kmodctl\\-%s (8)\n%s\n", manEscape(c.Name), manEscape(c.Usage))
		}
	}
	manFlags(&b, "FLAGS OF EVERY COMMAND", app.Flags)
	b.WriteString(".SH EXIT STATUS\n")
	for _, c := range exitTable {
		fmt.Fprintf(&b, ".TP\n%d\n%s\n", c.code, manEscape(c.meaning))
	}
	return b.String()
}

func manOfCommand(app *cli.App, c *cli.Command) string {
	var b strings.Builder
	manHead(&b, "kmodctl-"+c.Name, c.Usage, c.Name+" "+c.ArgsUsage)
	manText(&b, c.Description)
	manFlags(&b, "FLAGS", c.Flags)
	b.WriteString(".SH SEE ALSO\n.BR kmodctl (8)\n")
	return b.String()
}

func manHead(b *strings.Builder, name, usage, synopsis string) {
	fmt.Fprintf(b, ".TH %s 8 \"\" kmodctl\n.SH NAME\n%s \\- %s\n", strings.ToUpper(manEscape(name)), manEscape(name), manEscape(usage))
	fmt.Fprintf(b, ".SH SYNOPSIS\n.B kmodctl\n%s\n.SH DESCRIPTION\n", manEscape(synopsis))
}

// manText sets paragraphs; what is indented stays as it is.
func manText(b *strings.Builder, text string) {
	for _, p := range strings.Split(text, "\n\n") {
		if p == "Examples:\n" || p == "Examples:" {
			b.WriteString(".SH EXAMPLES\n")
			continue
		}
		p = manEscape(unindent(strings.TrimPrefix(p, "\n")))
		if strings.HasPrefix(p, "kmodctl ") || strings.Contains(p, "   ") {
			p = ".nf\n" + p + "\n.fi"
		}
		b.WriteString(".PP\n" + p + "\n")
	}
}

func manFlags(b *strings.Builder, title string, flags []cli.Flag) {
	if len(flags) == 0 {
		return
	}
	b.WriteString(".SH " + title + "\n")
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok || slices.Contains(f.Names(), "help") {
			continue
		}
		var names []string
		for _, n := range f.Names() {
			names = append(names, "-"+strings.Repeat("-", min(len(n)-1, 1))+n)
		}
		usage := strings.ReplaceAll(d.GetUsage(), "`", "")
		if env := d.GetEnvVars(); len(env) > 0 {
			usage += " (or $" + env[0] + ")"
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", manEscape(strings.Join(names, ", ")), manEscape(usage))
	}
}

func manEscape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// TestPackages: the same files make the same packages, and these have what a machine needs.
func TestPackages(t *testing.T) {
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	man := t.TempDir()
	writeManPages(t, man)
	var outs []string
	for range 2 {
		out := t.TempDir()
		outs = append(outs, out)
		cmd := exec.Command("../../packaging/make-packages", program, man, out, "1.2.3")
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make-packages: %v\n%s", err, text)
		}
	}
	made, _ := os.ReadDir(outs[0])
	if len(made) != 2 {
		t.Fatalf("made: %v", made)
	}
	for _, f := range made {
		a, _ := os.ReadFile(filepath.Join(outs[0], f.Name()))
		b, err := os.ReadFile(filepath.Join(outs[1], f.Name()))
		if err != nil || string(a) != string(b) {
			t.Errorf("%s is not the same twice: %v", f.Name(), err)
		}
		file := filepath.Join(outs[0], f.Name())
		list, facts := []string{"rpm", "-qplv", file}, []string{"rpm", "-qp", "--provides", "--conflicts", file}
		wants := []string{"/usr/lib/zypp/plugins/commit/kmodctl"}
		if strings.HasSuffix(f.Name(), ".deb") {
			list, facts = []string{"dpkg-deb", "-c", file}, []string{"dpkg-deb", "-f", file, "Provides", "Conflicts", "Replaces"}
			wants = []string{"/etc/kernel/postinst.d/dkms", "/etc/kernel/header_postinst.d/dkms", "/etc/kernel/prerm.d/dkms", "/etc/kernel/postrm.d/dkms"}
		}
		text, err := exec.Command(list[0], list[1:]...).Output()
		if err != nil {
			t.Fatal(err)
		}
		says(t, string(text), append(wants, "/usr/bin/kmodctl", "/usr/sbin/dkms", "/etc/kmodctl/config.toml", "/usr/lib/dkms/common.postinst", "/var/lib/dkms",
			"/usr/lib/kernel/install.d/40-dkms.install", "/usr/lib/systemd/system/sysinit.target.wants/kmodctl-boot.service",
			"/usr/share/bash-completion/completions/kmodctl", "_kmodctl", "kmodctl.fish", "/usr/share/man/man8/kmodctl-hook.8.gz")...)
		for _, line := range strings.Split(string(text), "\n") {
			if strings.HasSuffix(line, "/dkms") && strings.Contains(line, "/etc/kernel/") && !strings.HasPrefix(line, "-rwxr-xr-x") {
				t.Errorf("a hook that nobody can run: %s", line)
			}
		}
		if text, err = exec.Command(facts[0], facts[1:]...).Output(); err != nil {
			t.Fatal(err)
		}
		says(t, string(text), "dkms", "3.4.3")
	}
}
