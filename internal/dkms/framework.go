package dkms

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"kmodctl/internal/kernel"
)

// Framework is what /etc/dkms/framework.conf and framework.conf.d/*.conf set, by name; of
// names that DKMS does not know there is none.
type Framework map[string]string

var frameworkNames = strings.Fields(`source_tree dkms_tree install_tree tmp_location verbose symlink_modules
	autoinstall_all_kernels modprobe_on_install parallel_jobs compress_gzip_opts compress_xz_opts compress_zstd_opts
	build_environment post_transaction continue_on_error sign_file mok_signing_key mok_certificate try_sign_modules`)

// ReadFramework reads the administrator's settings below a root; release is what $kernelver in them stands for.
func ReadFramework(ctx context.Context, root kernel.Root, release string) (Framework, error) {
	m := &message{Names: frameworkNames, Vars: map[string]string{"kernelver": release}}
	add := func(name string) error {
		text, err := root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && says(string(text)) {
			m.Files = append(m.Files, file{name, name, string(text)})
		}
		return err
	}
	if err := add("/etc/dkms/framework.conf"); err != nil {
		return nil, err
	}
	const dir = "/etc/dkms/framework.conf.d"
	entries, err := root.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") && !strings.HasPrefix(e.Name(), ".") {
			if err := add(dir + "/" + e.Name()); err != nil {
				return nil, err
			}
		}
	}
	frame := Framework{}
	if len(m.Files) == 0 {
		return frame, nil
	}
	r, err := m.run(ctx)
	if err != nil {
		return nil, err
	}
	for name := range r.Values {
		frame[name] = r.Values.first(name)
	}
	return frame, nil
}

// says reports whether a file is more than comments, as the one that DKMS's package brings is not.
func says(text string) bool {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return true
		}
	}
	return false
}
