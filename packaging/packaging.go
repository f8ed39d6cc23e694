// Package packaging is what a package of kmodctl installs beside the program.
package packaging

import "embed"

// Hooks are the files by which package managers, kernel-install and systemd call kmodctl:
// SYSTEM/PATH, the path as a package installs it. They name the program /usr/bin/kmodctl.
//
//go:embed hooks
var Hooks embed.FS
