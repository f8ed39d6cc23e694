package build

import "errors"

// ErrNoNetwork is a build that failed because it looked for something elsewhere.
var ErrNoNetwork = errors.New("the build has no network: the source must be complete")

// networkLines name a network that cannot be reached, in the words of the C library, curl, wget, Go and Node.
var networkLines = anyOf(
	`Could not resolve host`,
	`Failed to connect to `,
	`unable to resolve host address`,
	`Temporary failure in name resolution`,
	`Name or service not known`,
	`[Nn]etwork is unreachable`,
	`[Aa]ddress family not supported by protocol`,
	`\bEAI_AGAIN\b`,
)

// offline reports whether a step failed for want of a network: it said so, and what
// else it said does not explain the failure better.
func (t *telling) offline() bool { return t.network != "" && t.line == "" }
