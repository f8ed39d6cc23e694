package kernel

import (
	"fmt"
	"strings"
)

// packager is how a family of distributions brings headers.
type packager struct {
	install   string
	reinstall string
	headers   func(release string) string // the package; "" when the release does not tell
}

// packagers has them by the ID that os-release(5) gives, of the distribution
// itself or of one that it is like.
var packagers = map[string]packager{
	"debian":   {"apt install", "apt install --reinstall", debianHeaders},
	"ubuntu":   {"apt install", "apt install --reinstall", debianHeaders},
	"fedora":   {"dnf install", "dnf reinstall", fedoraHeaders},
	"rhel":     {"dnf install", "dnf reinstall", fedoraHeaders},
	"arch":     {"pacman -S", "pacman -S", archHeaders},
	"suse":     {"zypper install", "zypper install --force", suseHeaders},
	"opensuse": {"zypper install", "zypper install --force", suseHeaders},
	"alpine":   {"apk add", "apk fix", alpineHeaders},
}

// install returns the command that brings the headers of a release, or "".
func (s *survey) install(release string) string {
	p := s.packager()
	return command(p.install, p, release)
}

// reinstall returns the command that mends a tree which a package brought, or "".
func (s *survey) reinstall(tree, release string) string {
	if !strings.HasPrefix(tree, "/usr/") && !strings.HasPrefix(tree, "/lib/") {
		return ""
	}
	p := s.packager()
	return command(p.reinstall, p, release)
}

func command(verb string, p packager, release string) string {
	if p.headers == nil {
		return ""
	}
	name := p.headers(release)
	if name == "" {
		return ""
	}
	return verb + " " + name
}

// packager returns that of the root's distribution; the zero packager when
// there is no os-release or it names a stranger.
func (s *survey) packager() packager {
	text, err := s.root.ReadFile("/etc/os-release")
	if err != nil {
		text, _ = s.root.ReadFile("/usr/lib/os-release")
	}
	for _, id := range distributions(string(text)) {
		if p, ok := packagers[id]; ok {
			return p
		}
	}
	return packager{}
}

// distributions returns the ID of an os-release file and those of its ID_LIKE.
func distributions(text string) []string {
	var id, like []string
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			id = []string{value}
		case "ID_LIKE":
			like = strings.Fields(value)
		}
	}
	return append(id, like...)
}

func debianHeaders(release string) string { return "linux-headers-" + release }

// fedoraHeaders knows the variants: 5.14.0-427.el9.x86_64+rt has its headers in
// kernel-rt-devel-5.14.0-427.el9.x86_64.
func fedoraHeaders(release string) string {
	release, variant, ok := strings.Cut(release, "+")
	if ok {
		return "kernel-" + variant + "-devel-" + release
	}
	return "kernel-devel-" + release
}

// cutFlavour takes 6.6.63-1-lts apart into 6.6.63-1 and lts. The flavour is ""
// when the last word is not one, as in 6.12.1-arch1-1 and 6.12.1-1-MANJARO.
func cutFlavour(release string) (base, flavour string) {
	i := strings.LastIndexByte(release, '-')
	letters := strings.Trim(release[i+1:], "0123456789") // SUSE has a flavour 64kb
	if i < 0 || letters == "" || letters[0] < 'a' || letters[0] > 'z' {
		return release, ""
	}
	return release[:i], release[i+1:]
}

// archHeaders returns linux-headers for 6.12.1-arch1-1 and linux-lts-headers for
// 6.6.63-1-lts. Arch keeps only the newest of each.
func archHeaders(release string) string {
	if _, flavour := cutFlavour(release); flavour != "" {
		return "linux-" + flavour + "-headers"
	}
	if strings.Contains(release, "-arch") {
		return "linux-headers"
	}
	if v := VersionOf(release); strings.HasSuffix(release, "-MANJARO") {
		return fmt.Sprintf("linux%d%d-headers", v[0], v[1])
	}
	return ""
}

func suseHeaders(release string) string {
	if base, flavour := cutFlavour(release); flavour != "" {
		return "kernel-" + flavour + "-devel=" + base
	}
	return ""
}

func alpineHeaders(release string) string {
	if _, flavour := cutFlavour(release); flavour != "" {
		return "linux-" + flavour + "-dev"
	}
	return ""
}
