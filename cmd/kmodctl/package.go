package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/urfave/cli/v2"

	"kmodctl/build"
	"kmodctl/registry"
)

func cmdPackage(e *env) *cli.Command {
	return &cli.Command{
		Name:      "package",
		Usage:     "make a .deb or an .rpm of a module's source, or of its modules for one kernel",
		ArgsUsage: "DIR",
		Description: examples("The package of a source installs it in /usr/src/NAME-VERSION and depends on kmodctl, whose package-hook its scripts call:\n"+
			"it is built where it is installed, for every kernel of that machine. With --binary it holds the modules for one kernel\n"+
			"release and depends on that kernel's image: it needs neither compiler, nor headers, nor kmodctl.\n\n"+
			"It is made by dpkg-deb or rpmbuild, with the times of SOURCE_DATE_EPOCH or else of the newest file: the same source makes the\n"+
			"same package. $DEBFULLNAME and $DEBEMAIL name the maintainer.",
			"kmodctl package ./acme-led", "kmodctl package ./acme-led --format rpm", "kmodctl package ./acme-led --binary -k 6.1.0-56-amd64"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Value: "deb", Usage: "deb or rpm"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: ".", Usage: "put it into the folder `DIR`"},
			&cli.BoolFlag{Name: "binary", Usage: "package the modules, built for the kernel of -k"},
			&cli.StringFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "with --binary: for kernel `RELEASE`"},
		},
		Action: func(c *cli.Context) error {
			dir, err := oneArg(c, "folder")
			if err != nil {
				return err
			}
			format, release := c.String("format"), c.String("kernel")
			switch {
			case format != "deb" && format != "rpm":
				return usagef("package: no format %q (deb, rpm)", format)
			case c.Bool("binary") != (release != ""):
				return usagef("package: --binary and -k RELEASE go together")
			}
			return e.pack(c.Context, dir, format, release, c.String("output"))
		},
	}
}

// parcel is what a package is made from; its templates see it.
type parcel struct {
	Name, Version string // of the package
	Source        string // NAME VERSION of the source
	Release       string // the kernel that modules are for; "" of a source
	Arch          string // in the words of the format
	Maintainer    string
	Staged        string // folder with the package's files
	Files         []string
}

func (e *env) pack(ctx context.Context, dir, format, release, out string) error {
	m, err := build.CheckSource(dir)
	if err != nil {
		return err
	}
	if m.Version[0] < '0' || m.Version[0] > '9' || strings.Contains(m.Version, "_") || format == "rpm" && strings.Contains(m.Version, "-") {
		return fmt.Errorf("package %s: %q is no version of a .%s", m.Name, m.Version, format)
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}
	if e.dryRun {
		e.would("package %s %s as .%s in %s", m.Name, m.Version, format, out)
		return nil
	}
	work, err := os.MkdirTemp("", "kmodctl-package-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	p := parcel{
		Name: packageName(m.Name), Version: m.Version, Source: m.Name + " " + m.Version, Release: release, Staged: filepath.Join(work, "root"),
		Maintainer: cmp.Or(os.Getenv("DEBFULLNAME"), "Unknown") + " <" + cmp.Or(os.Getenv("DEBEMAIL"), "unknown@localhost") + ">",
		Arch:       map[string]string{"deb": "all", "rpm": "noarch"}[format],
	}
	put := e.stageSource
	if release != "" {
		p.Name += "-" + packageName(release)
		put = e.stageModules
	}
	newest, err := put(ctx, dir, m, &p)
	if err != nil {
		return err
	}
	if err := p.list(); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	epoch := cmp.Or(os.Getenv("SOURCE_DATE_EPOCH"), strconv.FormatInt(newest.Unix(), 10))
	file, err := p.make(ctx, format, work, out, epoch)
	if err != nil {
		return fmt.Errorf("package %s: %w", m.Name, err)
	}
	e.say("made %s", file)
	return nil
}

// packageName is a name as both formats take it: Debian's policy 5.6.1.
func packageName(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "-", "~", "-").Replace(name))
}

// stageSource lays out the source as the registry would keep it.
func (e *env) stageSource(ctx context.Context, dir string, m *build.Manifest, p *parcel) (newest time.Time, err error) {
	_, files, err := registry.Digest(ctx, dir)
	if err != nil {
		return newest, err
	}
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return newest, err
	}
	defer tree.Close()
	for _, f := range files {
		to := filepath.Join(p.Staged, "usr/src", m.Name+"-"+m.Version, f.Path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return newest, err
		}
		if f.Link != "" {
			if err := os.Symlink(f.Link, to); err != nil {
				return newest, err
			}
			continue
		}
		at, err := copyFile(tree, f.Path, to, fs.FileMode(f.Mode))
		if err != nil {
			return newest, err
		}
		if at.After(newest) {
			newest = at
		}
	}
	return newest, nil
}

// stageModules builds the modules for one kernel, and lays them out with what is installed beside them. They get a folder of
// their own: what is in kmodctl's is the registry's.
func (e *env) stageModules(ctx context.Context, dir string, m *build.Manifest, p *parcel) (newest time.Time, err error) {
	with, _, err := e.buildable([]string{p.Release})
	if err != nil {
		return newest, err
	}
	k := with[0]
	if ok, why, err := m.Applies(k); err != nil || !ok {
		return newest, fmt.Errorf("package %s for %s: %s%w", m.Name, k.Name, why, err)
	}
	if p.Arch == "all" {
		out, err := exec.CommandContext(ctx, "dpkg", "--print-architecture").Output()
		if err != nil {
			return newest, err
		}
		p.Arch = strings.TrimSpace(string(out))
	} else {
		p.Arch = k.Arch
	}
	reg, done, err := e.scratch(ctx, "package")
	if err != nil {
		return newest, err
	}
	defer done()
	art, err := e.buildForRun(ctx, reg, dir, m, k)
	if err != nil {
		return newest, err
	}
	for _, mod := range art.Modules {
		blob, err := reg.Blob(mod.Digest)
		if err != nil {
			return newest, err
		}
		err = writeFrom(blob, filepath.Join(p.Staged, "usr/lib/modules", k.Name, "updates", m.Name, mod.File), 0o644)
		blob.Close()
		if err != nil {
			return newest, err
		}
	}
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return newest, err
	}
	defer tree.Close()
	packaged := strings.NewReplacer("/etc/", "/usr/lib/", "/lib/firmware/", "/usr/lib/firmware/") // what a package brings is not the administrator's
	for _, b := range m.Beside() {
		to := filepath.Join(p.Staged, packaged.Replace(b.Path))
		if b.File == "" {
			err = writeFrom(strings.NewReader(b.Text), to, 0o644)
		} else {
			_, err = copyFile(tree, b.File, to, 0o644)
		}
		if err != nil {
			return newest, err
		}
	}
	return newestIn(tree)
}

// newestIn is when the newest file of a source was changed.
func newestIn(tree *os.Root) (newest time.Time, err error) {
	err = fs.WalkDir(tree.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		return err
	})
	return newest, err
}

func copyFile(tree *os.Root, name, to string, mode fs.FileMode) (at time.Time, err error) {
	f, err := tree.Open(name)
	if err != nil {
		return at, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return at, err
	}
	return info.ModTime(), writeFrom(f, to, mode)
}

func writeFrom(from io.Reader, to string, mode fs.FileMode) error {
	text, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, text, mode); err != nil {
		return err
	}
	return os.Chmod(to, mode)
}

// Kernel is what modules for Release require as an .rpm: what Fedora's kernels provide, or a folder of the kernel where its
// release cannot be a version.
func (p *parcel) Kernel() string {
	if strings.Count(p.Release, "-") > 1 {
		return "/lib/modules/" + p.Release
	}
	return "kernel-uname-r = " + p.Release
}

// list notes the files of the package, and gives its folders the mode that they have on every machine.
func (p *parcel) list() error {
	return filepath.WalkDir(p.Staged, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(name, 0o755)
		}
		p.Files = append(p.Files, strings.TrimPrefix(name, p.Staged))
		return nil
	})
}

// The scripts of a package: of a source, those that a vendor would write by hand; of modules, the index.
const (
	hookScript   = `kmodctl package-hook %s {{.Source}} "$@"`
	depmodScript = `depmod {{.Release}}`
)

var debFiles = map[string]string{
	"control": `Package: {{.Name}}
Version: {{.Version}}
Architecture: {{.Arch}}
Maintainer: {{.Maintainer}}
Section: kernel
Priority: optional
Depends: {{if .Release}}linux-image-{{.Release}} | linux-image-{{.Release}}-unsigned, kmod{{else}}kmodctl{{end}}
Description: kernel modules of {{.Source}}{{if .Release}} for {{.Release}}{{end}}
`,
	"postinst": "#!/bin/sh\nset -e\n{{if .Release}}" + depmodScript + "{{else}}" + fmt.Sprintf(hookScript, "postinst") + "{{end}}\n",
	"prerm":    "#!/bin/sh\nset -e\n{{if not .Release}}" + fmt.Sprintf(hookScript, "prerm") + "\n{{end}}",
	"postrm":   "#!/bin/sh\nset -e\n{{if .Release}}if [ -d /lib/modules/{{.Release}}/kernel ]; then " + depmodScript + "; fi\n{{end}}",
}

const rpmSpec = `Name: {{.Name}}
Version: {{.Version}}
Release: 1
Summary: kernel modules of {{.Source}}{{if .Release}} for {{.Release}}{{end}}
License: see the source
Packager: {{.Maintainer}}
AutoReqProv: no
{{if .Release}}Requires: {{.Kernel}}
Requires(post): kmod
{{else}}Requires: kmodctl
{{end}}
%global debug_package %{nil}
%global __os_install_post %{nil}
%description
Kernel modules of {{.Source}}{{if .Release}} for {{.Release}}{{end}}.
%install
cp -a {{.Staged}}/. %{buildroot}
%post
{{if .Release}}` + depmodScript + `{{else}}kmodctl package-hook postinst {{.Source}} "$@"{{end}}
%preun
{{if not .Release}}kmodctl package-hook prerm {{.Source}} "$@"{{end}}
%postun
{{if .Release}}[ ! -d /lib/modules/{{.Release}}/kernel ] || ` + depmodScript + `{{end}}
%files
{{range .Files}}"{{.}}"
{{end}}`

// make makes the package of what is staged, and returns its file.
func (p *parcel) make(ctx context.Context, format, work, out, epoch string) (file string, err error) {
	fill := func(text, to string, mode fs.FileMode) error {
		var b bytes.Buffer
		if err := template.Must(template.New("").Parse(text)).Execute(&b, p); err != nil {
			return err
		}
		return writeFrom(&b, to, mode)
	}
	var cmd *exec.Cmd
	if format == "deb" {
		for name, text := range debFiles {
			mode := fs.FileMode(0o755)
			if name == "control" {
				mode = 0o644
			}
			if err := fill(text, filepath.Join(p.Staged, "DEBIAN", name), mode); err != nil {
				return "", err
			}
		}
		if err := os.Chmod(filepath.Join(p.Staged, "DEBIAN"), 0o755); err != nil {
			return "", err
		}
		file = filepath.Join(out, fmt.Sprintf("%s_%s_%s.deb", p.Name, p.Version, p.Arch))
		cmd = exec.CommandContext(ctx, "dpkg-deb", "--root-owner-group", "-Zxz", "--build", p.Staged, file)
	} else {
		spec := filepath.Join(work, "spec")
		if err := fill(rpmSpec, spec, 0o644); err != nil {
			return "", err
		}
		file = filepath.Join(out, fmt.Sprintf("%s-%s-1.%s.rpm", p.Name, p.Version, p.Arch))
		args := []string{"--quiet", "-bb", "--target", p.Arch}
		for _, define := range []string{
			"_topdir " + filepath.Join(work, "rpmbuild"), "_rpmdir " + out, "_rpmfilename " + filepath.Base(file), "_buildhost localhost",
			"use_source_date_epoch_as_buildtime 1", "clamp_mtime_to_source_date_epoch 1", "_build_id_links none",
		} {
			args = append(args, "--define", define)
		}
		cmd = exec.CommandContext(ctx, "rpmbuild", append(args, spec)...)
	}
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(text)))
	}
	return file, nil
}
