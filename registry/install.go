package registry

import "time"

// Install is one file of ours under /lib/modules.
type Install struct {
	Release  string    `json:"release"`
	Module   string    `json:"module"`
	Path     string    `json:"path"` // inside the root: /lib/modules/R/updates/kmodctl/hello.ko
	Package  string    `json:"package"`
	Version  string    `json:"version"`
	Artifact string    `json:"artifact"` // digest of the artifact's record
	Digest   string    `json:"digest"`   // SHA-256 in hex of the installed file
	Size     int64     `json:"size"`     // bytes
	At       time.Time `json:"at"`
}

// Result says what Install or Uninstall changed. No Changes: nothing was done.
type Result struct {
	Release string   `json:"release"`
	Changes []Change `json:"changes"`
	Depmod  bool     `json:"depmod"` // the module index was made anew
}

// Change is one file or row that came, changed or went.
type Change struct {
	Action  string `json:"action"` // install, replace, remove, or record: the file was right, its row was not
	Package string `json:"package"`
	Version string `json:"version"`
	Module  string `json:"module"`
	Path    string `json:"path"` // inside the root
}

// Drift is one way in which /lib/modules is not what the install rows say.
type Drift struct {
	Kind    string `json:"kind"` // missing, modified, foreign, or unindexed: modules.dep does not name it
	Release string `json:"release"`
	Path    string `json:"path"` // inside the root
	Module  string `json:"module,omitempty"`
	Package string `json:"package,omitempty"` // "" for a foreign file
	Version string `json:"version,omitempty"`
}
