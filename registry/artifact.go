package registry

import "time"

// Artifact is what one build of a package for one kernel release made. Its
// record, which is this as JSON, is a blob; Digest names it.
type Artifact struct {
	Digest    string    `json:"digest,omitempty"` // SHA-256 in hex of the JSON record
	Package   string    `json:"package"`
	Version   string    `json:"version"`
	Release   string    `json:"release"`    // kernel release it was built for
	InputHash string    `json:"input_hash"` // over Inputs
	Inputs    []Input   `json:"inputs,omitempty"`
	Modules   []Module  `json:"modules"`
	Log       string    `json:"log,omitempty"` // digest of the build log's blob
	Compiler  string    `json:"compiler,omitempty"`
	Built     time.Time `json:"built"`
	Seconds   float64   `json:"seconds"` // how long the build took
}

// Input is one thing that a build depends on; status names the one that changed.
type Input struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Module is one .ko of an artifact.
type Module struct {
	Name       string   `json:"name"`   // the kernel's form, with _
	File       string   `json:"file"`   // hello-world.ko; no folder
	Digest     string   `json:"digest"` // SHA-256 in hex of the file, which is a blob
	Size       int64    `json:"size"`   // bytes
	BuildID    string   `json:"build_id,omitempty"`
	Vermagic   string   `json:"vermagic,omitempty"`
	SrcVersion string   `json:"srcversion,omitempty"`
	Version    string   `json:"version,omitempty"` // MODULE_VERSION
	Depends    []string `json:"depends,omitempty"` // modules it needs, by name
}
