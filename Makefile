# kmodctl's make targets. Each is .PHONY: `build` is a folder here.
.PHONY: all build demo test setup check unit oracle fuzz loader e2e registry torture signing test-secureboot bench bench-dkms debian test-debian docs packages clean

GO      ?= go
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo devel)
TAGS    := urfave_cli_no_docs
PART    := .ci/part
# No cached results: what the tests read of this machine (kernels, headers) is no input that go knows of.
TEST    := $(GO) test -count=1

# The static binary.
all build:
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/kmodctl ./cmd/kmodctl

# From nothing to "hello: module loaded", printed by a real kernel.
demo:
	.ci/setup demo
	$(MAKE) all
	.ci/as-root bin/kmodctl build ./examples/hello
	bin/kmodctl run ./examples/hello

# All tests, on two kernel series; sets the machine up first.
test:
	.ci/setup test
	$(PART) check 'cheap checks' $(MAKE) check
	$(PART) unit  'unit tests, race detector' $(MAKE) unit
	$(PART) ko    'every .ko against modinfo' $(MAKE) oracle
	$(PART) fuzz  'fuzzers, 20,000 inputs each' $(MAKE) fuzz
	$(PART) loader 'the loader on real kernels: every refusal and its cause' $(MAKE) loader
	$(PART) registry 'the registry: faults, kills, full disks' $(MAKE) registry
	$(PART) main  'the main job on real kernels' $(MAKE) e2e
	$(PART) signing 'Secure Boot: both kernels below UEFI and shim' $(MAKE) signing
	$(PART) debian 'Debian: dkms replaced, kernels and packages come and go' $(MAKE) debian

setup:
	.ci/setup test

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

check:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(MAKE) all

# internal/vm and cmd boot kernels: they are e2e's, but for what runs on several cores. The children of internal/dkms have
# less memory than the race detector asks for; ko and vmlinux only compute, and take minutes of it.
UNRACED := ./internal/dkms ./internal/ko ./internal/vmlinux
unit:
	CGO_ENABLED=1 $(TEST) -timeout 30m -race -short -skip '$(LOADER)' $$($(GO) list ./... | grep -v -e '/internal/vm$$' -e /cmd/ $(patsubst .%,-e %$$,$(UNRACED)))
	CGO_ENABLED=0 $(TEST) -timeout 30m -short $(UNRACED)
	CGO_ENABLED=1 $(TEST) -race -tags $(TAGS) -run ManyPackages ./cmd/kmodctl

oracle:
	CGO_ENABLED=0 $(TEST) -run 'Oracle|EqualModprobe|NoFalseAlarm/(headers|6\.1\..*image)' -v ./internal/ko ./loader

# The seeds run with the unit tests; this looks for new inputs.
FUZZTIME ?= 20000x
fuzz:
	.ci/fuzz $(FUZZTIME)

# What boots kernels to load modules; its log has the table of refusals, what is said of signatures, and how long loads take
# beside modprobe's. The test binary is the guest's init, so it has to be static.
LOADER := ^(TestRefusals|TestOnRealKernels|TestCompressedOnRealKernels|TestSignaturesOnRealKernels|TestLoadsOnRealKernels)$$
loader:
	CGO_ENABLED=0 $(TEST) -p 1 -timeout 30m -tags $(TAGS) -run '$(LOADER)' -v ./loader ./cmd/kmodctl

e2e: all
	CGO_ENABLED=0 $(TEST) -timeout 30m ./internal/vm
	CGO_ENABLED=0 $(TEST) -timeout 60m -tags $(TAGS) -skip 'Torture|^TestSecureBoot$$|$(LOADER)' -v ./cmd/kmodctl

# One boot of each kernel below UEFI; test-secureboot has all: a key in db, in MokListRT and through shim, Secure Boot on and off.
signing:
	CGO_ENABLED=0 $(TEST) -timeout 60m -tags $(TAGS) -run '^TestSecureBoot$$' -v ./cmd/kmodctl

test-secureboot:
	.ci/setup test
	KMODCTL_SECUREBOOT=full $(PART) signing 'Secure Boot: every way to trust a key, on and off' $(MAKE) signing

# What the registry withstands; in full it takes hours.
registry:
	CGO_ENABLED=0 $(TEST) -timeout 6h -tags $(TAGS) -run Torture -v ./cmd/kmodctl

torture:
	.ci/setup test
	KMODCTL_TORTURE=full $(PART) torture 'the registry, every fault' $(MAKE) registry

# Figures, not tests: ratios against a peer in the same run.
bench: all
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -run '^$$' -bench . -benchtime 1x ./cmd/kmodctl

# Debian's *-dkms packages built by plain make, by DKMS and by kmodctl, in a Debian of their own: docs/benchmarks.md.
# In the folder KMODCTL_BENCH it is kept for the next time. RUNS=1 for a trial.
RUNS ?= 5
bench-dkms: all
	.ci/bench-dkms $(RUNS)

# The .deb in a Debian 12 of its own, with Debian's *-dkms packages and kernels, by apt: six packages, all 30 with FULL=1. In the
# folder KMODCTL_DEBIAN that Debian is kept for the next time.
test-debian:
	.ci/setup test
	$(PART) debian 'Debian: dkms replaced, kernels and packages come and go' $(MAKE) debian

# The program of the tests is the guest that a packaged module is loaded in.
debian: packages
	CGO_ENABLED=0 $(GO) test -c -tags $(TAGS) -o bin/kmodctl.test ./cmd/kmodctl
	.ci/test-debian

# docs/cli.md is made from the commands.
docs:
	$(GO) test -tags $(TAGS) ./cmd/kmodctl -run TestCLIDocs -update

# bin/*.deb and bin/*.rpm; the same commit makes the same bytes.
PACKAGE_VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/+/; s/-/./' | grep . || git log -1 --date=format:%Y%m%d --format=0~git%cd.%h)
packages:
	$(MAKE) all VERSION=$(PACKAGE_VERSION)
	rm -rf bin/man && mkdir bin/man
	$(GO) test -count=1 -tags $(TAGS) ./cmd/kmodctl -run TestManPages -man $(CURDIR)/bin/man
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) packaging/make-packages bin/kmodctl bin/man bin $(PACKAGE_VERSION)

clean:
	rm -rf bin
