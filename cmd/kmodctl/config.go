package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	toml "github.com/pelletier/go-toml/v2"
)

// configFile is what the administrator says, inside the root. Files of the folder beside it are read after it, by their
// names; what a later one says counts.
const (
	configFile   = "/etc/kmodctl/config.toml"
	configFolder = "/etc/kmodctl/config.toml.d"
)

// config is what the administrator says; docs/config.md explains every key.
type config struct {
	Build struct {
		Reuse *bool `toml:"reuse"` // builds for other kernels may be reused; nil leaves it to the manifests
	} `toml:"build"`
	Compress string `toml:"compress"` // auto, none, xz, zstd or gzip; "" where nothing is said
	DKMS     struct {
		Scripts bool `toml:"scripts"` // POST_INSTALL and its like are run, as root
	} `toml:"dkms"`
	Hook    hookConfig               `toml:"hook"`
	Sign    signConfig               `toml:"sign"`
	Package map[string]packageConfig `toml:"package"` // by name
}

// hookConfig says how package managers are served.
type hookConfig struct {
	Strict    bool   `toml:"strict"`     // a failure is an error to the package manager
	TimeLimit string `toml:"time_limit"` // as time.ParseDuration reads it; "" is hookTimeLimit
}

// packageConfig is what he says of one package, in the place of its manifest.
type packageConfig struct {
	Reuse *bool `toml:"reuse"`
}

// configError is a configuration that cannot be read, with the place of the fault.
type configError struct {
	file         string
	line, column int // from 1; 0 of a fault that has no place
	reason       string
}

func (e *configError) Error() string {
	if e.line == 0 {
		return fmt.Sprintf("read %s: %s", e.file, e.reason)
	}
	return fmt.Sprintf("read %s:%d:%d: %s", e.file, e.line, e.column, e.reason)
}

// readConfig reads the administrator's configuration; where there is none it is empty. An unknown key is a *configError.
func (e *env) readConfig() (config, error) {
	var c config
	files := []string{configFile}
	entries, err := e.root.ReadDir(configFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	for _, entry := range entries { // sorted by name
		if strings.HasSuffix(entry.Name(), ".toml") {
			files = append(files, path.Join(configFolder, entry.Name()))
		}
	}
	for i, file := range files {
		text, err := e.root.ReadFile(file)
		if i == 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		if err := c.read(file, text); err != nil {
			return c, err
		}
	}
	return c, nil
}

// configuration is what the administrator says, read once for a job.
func (j *job) configuration() (config, error) {
	j.configuring.Do(func() { j.admin, j.adminErr = j.readConfig() })
	return j.admin, j.adminErr
}

// read adds what a file says.
func (c *config) read(file string, text []byte) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		first := unknown.Errors[0]
		line, column := first.Position()
		return &configError{file, line, column, fmt.Sprintf("unknown key %q", strings.Join(first.Key(), "."))}
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return &configError{file, line, column, strings.TrimPrefix(wrong.Error(), "toml: ")}
	case err != nil:
		return err
	}
	if reason := cmp.Or(c.Sign.fault(), compressFault(c.Compress)); reason != "" {
		return &configError{file: file, reason: reason}
	}
	return nil
}

// reuses reports whether builds of a package for other kernels may be reused, by what the administrator says of the
// package, of all, and its manifest says.
func (c config) reuses(name string, manifest bool) bool {
	for _, said := range []*bool{c.Package[name].Reuse, c.Build.Reuse} {
		if said != nil {
			return *said
		}
	}
	return manifest
}
