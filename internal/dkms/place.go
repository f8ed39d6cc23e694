package dkms

import (
	"strings"

	"kmodctl/internal/kernel"
)

// DestLocation is the folder below /lib/modules/RELEASE that DKMS installs a module in whose conf says
// location: on most distributions always the same.
func DestLocation(root kernel.Root, location string) string {
	name := distribution(root)
	for _, d := range []struct{ prefix, place string }{
		{"fedora", "/extra"}, {"rhel", "/extra"}, {"centos", "/extra"}, {"ovm", "/extra"},
		{"sles", "/updates"}, {"suse", "/updates"}, {"opensuse", "/updates"},
		{"debian", "/updates/dkms"}, {"ubuntu", "/updates/dkms"}, {"arch", "/updates/dkms"},
	} {
		if strings.HasPrefix(name, d.prefix) {
			return d.place
		}
	}
	return location
}

// distribution is what DKMS goes by: os-release(5)'s ID_LIKE, else its ID; "" without the file.
func distribution(root kernel.Root) string {
	text, err := root.ReadFile("/etc/os-release")
	if err != nil {
		text, _ = root.ReadFile("/usr/lib/os-release")
	}
	value := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, word, _ := strings.Cut(strings.TrimSpace(line), "=")
		value[name] = strings.Trim(word, `"'`)
	}
	if value["ID"] == "ubuntu" || value["ID_LIKE"] == "" {
		return value["ID"]
	}
	return value["ID_LIKE"]
}
