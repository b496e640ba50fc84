# gpuvirt. `make help` says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PREFIX  ?= /usr/local
DESTDIR ?=

# The bootstrapped toolchain comes first; it exists only where no suitable Go
# was found (hack/bootstrap). /usr/local/go is looked at by hack/bootstrap too.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH)
# The Go that hack/bootstrap chose is the Go that runs, and what a build
# contains does not hang on the state or the owner of the git folder.
export GOTOOLCHAIN := local
export GOFLAGS := $(filter-out -buildvcs=%,$(GOFLAGS)) -buildvcs=false
# The binding to NVML has functions that NVIDIA calls outdated. Nothing here calls them.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations
# Go and the linter need a place for their caches also without a home folder.
ifeq ($(HOME),)
export XDG_CACHE_HOME ?= $(CURDIR)/.cache
export GOPATH ?= $(CURDIR)/.cache/gopath
endif

# That of the packages, which tells of files that nobody has added, too.
VERSION ?= $(shell hack/packages --version)
TAGS    := libvirt_dlopen
LDFLAGS := -X gpuvirt/internal/version.version=$(VERSION)
# As packages are built; the tools, the programs of tests and what linters read too: they share
# what is compiled. The client alone is not position independent (hack/packages says why).
LIKE_PACKAGES := -trimpath -buildmode=pie
GOBUILD  = go build $(LIKE_PACKAGES) -ldflags '$(LDFLAGS)' -tags $(TAGS)

GOLANGCI_VERSION := $(shell sed -n 's|.*github.com/golangci/golangci-lint/v2 \(v[^ ]*\).*|\1|p' tools/go.mod)
NFPM_VERSION := $(shell sed -n 's|.*github.com/goreleaser/nfpm/v2 \(v[^ ]*\).*|\1|p' tools/go.mod)
NFPM := $(CURDIR)/.cache/bin/nfpm-$(NFPM_VERSION)
GOLANGCI := $(CURDIR)/.cache/bin/golangci-lint-$(GOLANGCI_VERSION)

-include test/lab/lab.mk test/p2v/p2v.mk

##@ Build

.PHONY: all
all: build ## Build everything

.PHONY: bootstrap
bootstrap: ## Install what building and testing needs (only what is missing)
	@hack/bootstrap

.PHONY: build
build: bootstrap ## Build bin/gpuvirtd and bin/gpuvirt
	CGO_ENABLED=1 $(GOBUILD) -o bin/gpuvirtd ./cmd/gpuvirtd
	CGO_ENABLED=0 $(GOBUILD) -buildmode=exe -o bin/gpuvirt ./cmd/gpuvirt

.PHONY: generate
generate: bootstrap ## Regenerate the generated files
	go generate ./...

.PHONY: install
install: build ## Install the binaries under $(DESTDIR)$(PREFIX)
	install -D -m 0755 bin/gpuvirtd '$(DESTDIR)$(PREFIX)/sbin/gpuvirtd'
	install -D -m 0755 bin/gpuvirt '$(DESTDIR)$(PREFIX)/bin/gpuvirt'

.PHONY: clean
clean: ## Remove what was built (the caches under .cache stay)
	rm -rf bin dist .cache/cover.out .cache/cover.html

##@ Test

# A program with the race detector waits at its end, by itself for a second, in case that another
# goroutine is just about to find something. The tests have hundreds of programs.
GORACE ?= atexit_sleep_ms=50

.PHONY: test
test: bootstrap ## Run the tests with the race detector (PKG=./gpu/... TESTFLAGS=-v)
	@hack/bootstrap dbus-daemon e2fsprogs libvirt0 nbdkit openssh-server openssl qemu-guest-agent qemu-utils systemd
	CGO_ENABLED=1 GORACE='$(GORACE)' go test -race -timeout 25m -tags $(TAGS) $(TESTFLAGS) $(or $(PKG),./...)
	$(if $(filter-out ./mig ./mig/... ./...,$(PKG)),,CGO_ENABLED=1 go test -timeout 5m -tags $(TAGS) -run '^Test(Places|Chain)' $(TESTFLAGS) ./mig)

.PHONY: hw-test
hw-test: bootstrap ## Read what a GPU of NVIDIA in this machine says; changes no setting (NVML=path of its library)
	CGO_ENABLED=1 go test -tags $(TAGS),hw -count=1 -v -run '^TestHardware$$' ./mig

.PHONY: ansible-test
ansible-test: build ## Play the Ansible collection against the daemon on a simulated host (PYTHON=of the host)
	@hack/bootstrap ansible-core openssl openssh-client openssh-server qemu-utils
	ansible/tests/run

.PHONY: ansible-test-trixie
ansible-test-trixie: build ## The same with the Ansible and Python of Debian 13, in a root of it (as root)
	@hack/bootstrap mmdebstrap debian-archive-keyring
	hack/in-suite trixie ansible-core,openssl,openssh-client,openssh-server,qemu-utils -- ansible/tests/run

.PHONY: cover
cover: bootstrap ## Measure how much the tests cover
	CGO_ENABLED=1 go test -tags $(TAGS) -coverpkg=./... -coverprofile=.cache/cover.out ./...
	go tool cover -html=.cache/cover.out -o .cache/cover.html
	go tool cover -func=.cache/cover.out | tail -n 1

.PHONY: bench
bench: packages lab bench-p2v ## Compare placing with the optimum, copying with nbdcopy, and REST with bare calls and usual tools in the lab: ratios in one run
	go test -tags $(TAGS) -run '^$$' -bench . ./mig
	CGO_ENABLED=1 $(GOBUILD),lab -o bin/labbench ./test/lab/bench
	LAB_HYPERVISORS=1 go test -tags $(TAGS),lab,bench -count=1 -timeout 30m -v -run '^Test(Tracker)?Ratios$$' ./test/lab

.PHONY: bench-p2v
bench-p2v: bootstrap ## Compare copying a disk with nbdcopy, and the time at rest of 8 GiB with that of 1 GiB (as root)
	@hack/bootstrap nbdkit libnbd-bin
	go test -tags $(TAGS) -run '^$$' -bench . -timeout 20m ./p2v/block
	go test -tags $(TAGS) -run '^$$' -bench . -benchtime 20x -timeout 20m ./p2v/track

.PHONY: demo
demo: build ## Give a VM of a simulated host a partition, and take it back (KEEP=1: stay)
	hack/demo

##@ Check

.PHONY: check
check: check-format lint check-mod check-generated check-deps check-shell check-rules ## All that must hold before a commit, tests apart

.PHONY: fmt
fmt: $(GOLANGCI) ## Format the Go code
	$(GOLANGCI) fmt

.PHONY: lint
lint: $(GOLANGCI) ## Run golangci-lint
	GOFLAGS='$(GOFLAGS) $(LIKE_PACKAGES)' $(GOLANGCI) run

.PHONY: check-format
check-format: $(GOLANGCI) ## Is the Go code formatted?
	$(GOLANGCI) fmt --diff

.PHONY: check-mod
check-mod: bootstrap ## Are both go.mod and go.sum tidy?
	go mod tidy -diff
	go -C tools mod tidy -diff

.PHONY: check-generated
check-generated: bootstrap ## Are the generated files fresh?
	hack/check-generated

.PHONY: check-deps
check-deps: bootstrap ## Do the binaries contain just the modules of hack/deps.txt?
	@hack/deps | diff -u hack/deps.txt - || \
		{ echo 'the modules in the binaries changed: if that is wanted, run: make deps-update' >&2; exit 1; }

.PHONY: deps-update
deps-update: bootstrap ## Write hack/deps.txt anew
	@hack/deps >.cache/deps.txt
	@mv .cache/deps.txt hack/deps.txt

.PHONY: check-shell
check-shell: ## Run shellcheck over all shell scripts
	@hack/bootstrap shellcheck
	hack/check-shell

.PHONY: check-rules
check-rules: $(GOLANGCI) ## Do the rules of the house hold, and do the linters enforce them?
	GOLANGCI_LINT=$(GOLANGCI) go test -count=1 ./test/lint

.PHONY: tools
tools: $(NFPM) $(GOLANGCI) ## Build the tools that packaging and checking need

# Built once per version, as the module proxy serves no binaries. CGO is off so
# that the file works on any Debian.
$(GOLANGCI): | bootstrap
	@echo 'building golangci-lint $(GOLANGCI_VERSION): this takes minutes, once' >&2
	@mkdir -p $(@D)
	CGO_ENABLED=0 nice go -C tools build $(LIKE_PACKAGES) -o '$@' github.com/golangci/golangci-lint/v2/cmd/golangci-lint

##@ Release

.PHONY: packages
packages: bootstrap $(NFPM) ## Build the DEB, the RPM, those of the collection, the SBOM and the checksums (into dist)
	@hack/bootstrap binutils
	NFPM=$(NFPM) hack/packages dist

.PHONY: check-packages
check-packages: packages ## Do the packages come out the same again, and what do lintian, rpmlint and rpm say?
	@hack/bootstrap lintian rpmlint cpio rpm systemd gpg gpg-agent
	NFPM=$(NFPM) hack/check-packages dist

DIST ?= dist
.PHONY: sign
sign: ## Sign the checksums of the packages in dist (KEY=the signer's key, DIST=another folder)
	gpg --batch --yes --armor --detach-sign $(if $(KEY),--local-user '$(KEY)') '$(DIST)/SHA256SUMS'

$(NFPM): | bootstrap
	@mkdir -p $(@D)
	CGO_ENABLED=0 nice go -C tools build $(LIKE_PACKAGES) -o '$@' github.com/goreleaser/nfpm/v2/cmd/nfpm

##@ Help

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-zA-Z0-9_.-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
