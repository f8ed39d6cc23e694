package registry

import "time"

// Source is one package version as the registry keeps it: a copy of its folder.
type Source struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Digest   string    `json:"digest"` // SHA-256 in hex of the tar archive, which is a blob
	Origin   string    `json:"origin"` // the folder it was copied from; it may be gone
	Added    time.Time `json:"added"`
	Manifest string    `json:"manifest"` // text of its kmod.toml
	Files    []File    `json:"files"`    // sorted by path
}

// File is one file of a source.
type File struct {
	Path   string `json:"path"` // slash separated, below the source's folder
	Mode   uint32 `json:"mode"` // 0644 or 0755; 0777 for a symbolic link
	Size   int64  `json:"size"` // bytes; 0 for a symbolic link
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"` // target of a symbolic link
}
