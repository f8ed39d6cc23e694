package registry

import "time"

// Attempt is one try to build, install or uninstall a package, kept for good.
type Attempt struct {
	ID        int64     `json:"id"`
	Op        string    `json:"op"` // build, install or uninstall
	Package   string    `json:"package"`
	Version   string    `json:"version"`
	Release   string    `json:"release"`
	Outcome   string    `json:"outcome"` // ok, failed or interrupted; "" while it runs
	Error     string    `json:"error,omitempty"`
	Started   time.Time `json:"started"`
	Seconds   float64   `json:"seconds"`
	Log       string    `json:"log,omitempty"` // digest of the log's blob
	InputHash string    `json:"input_hash,omitempty"`
}
