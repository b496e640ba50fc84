##@ Lab

# SUITE=bookworm runs all of it on Debian 12: Linux 6.1, libvirt 9.0.
SUITE ?= trixie
export SUITE

.PHONY: lab-deps
lab-deps: ## Install what the lab needs (only what is missing)
	@test/lab/deps.sh

.PHONY: lab
lab: bootstrap lab-deps ## Build the lab's hypervisor image, unless it is there (SUITE=bookworm)
	@test/lab/build.sh

.PHONY: lab-test
lab-test: packages lab ## Run the scenarios in the lab (LAB_ARGS='-run TestSmoke -v')
	@hack/bootstrap ansible-core
	@[ dist/SHA256SUMS -ot .cache/lab/next/SHA256SUMS ] || PACKAGE_VERSION=$$(dpkg-deb -f dist/gpuvirt_*.deb Version | sed 's/-1$$/+next/') NFPM=$(NFPM) hack/packages .cache/lab/next
	@[ dist/SHA256SUMS -ot .cache/lab/nextschema/SHA256SUMS ] || PACKAGE_TAGS=nextschema PACKAGE_VERSION=$$(dpkg-deb -f dist/gpuvirt_*.deb Version | sed 's/-1$$/+nextschema/') NFPM=$(NFPM) hack/packages .cache/lab/nextschema
	go test -tags lab,$(TAGS) -count=1 -timeout 45m -v ./test/lab $(LAB_ARGS)

.PHONY: lab-shell
lab-shell: packages lab ## Boot the lab with this tree's daemon and open a shell in it
	@mkdir -p .cache/lab
	@go build -tags lab,$(TAGS) -o .cache/lab/shell ./test/lab/shell
	@.cache/lab/shell
