// Package kernel finds the kernels of a machine, or of a folder that holds one
// (an image, a chroot), and says of each what building and loading need: its
// build tree, its configuration and compiler, and what is missing, by name.
//
// Find is the place to start, Get has one kernel. The package reads only; a
// kernel that lacks something is a fact in its Release, not an error.
package kernel

// Release is one kernel of a machine, as uname -r names it.
type Release struct {
	Name    string `json:"release"`           // uname -r, for instance "6.1.0-56-amd64"
	Root    Root   `json:"-"`                 // where it was found: paths are named inside it
	Arch    string `json:"arch,omitempty"`    // uname -m name, for instance "x86_64": of the tree's configuration, else of the host; "" when neither tells
	Running bool   `json:"running,omitempty"` // the kernel this process runs on; never set under a root other than "/"
	Modules string `json:"modules,omitempty"` // /lib/modules/<release> as named inside the root; "" when there is none
	Image   string `json:"image,omitempty"`   // vmlinuz as named inside the root; "" when there is none
	Tree    *Tree  `json:"tree,omitempty"`    // build tree; nil when Missing says why there is none that can be used

	// Missing names what this kernel lacks for a build, in words for people.
	Missing []Missing `json:"missing,omitempty"`

	// Err is why the kernel could not be looked at, such as an input/output error; Missing says so too. What the
	// other fields lack may be there then.
	Err error `json:"-"`
}

// Missing is one thing that a kernel lacks, and the command that brings it.
type Missing struct {
	What    string `json:"what"`             // "headers for 6.1.0-56-amd64 are not installed"
	Remedy  string `json:"remedy,omitempty"` // "apt install linux-headers-6.1.0-56-amd64"; "" when unknown
	Package string `json:"-"`                // the part of the headers that is missing, "linux-kbuild-6.1"; "" when unknown
}

// Tree is a build tree: what /lib/modules/<release>/build leads to.
type Tree struct {
	Path       string `json:"path"`         // as named inside the root, links resolved
	Host       string `json:"-"`            // the same folder as this process opens it
	CC         string `json:"cc,omitempty"` // CONFIG_CC_VERSION_TEXT: the compiler that built the kernel
	Config     Config `json:"-"`            // <tree>/.config
	ConfigFile string `json:"-"`            // the file it was read from, as this process opens it
	Symvers    string `json:"-"`            // Module.symvers as this process opens it
}
