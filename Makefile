# make          builds bin/nftfw
# make test     installs what the tests need (root, Debian), then runs all tests
# make help     lists the rest

GO        ?= go
BIN       := bin/nftfw
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
FUZZTIME  ?= 30s
BENCH     ?=
KILLTIME  ?= 2m
SOAKTIME  ?= 10m

# Pinned, so that the same tree gives the same findings everywhere.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.0
# The last release of nfpm that the Go module proxy serves complete.
NFPM          := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.1.4

# The integration tests take engines, namespaces and root; everything else is
# a unit test, of which some use a network namespace of their own as root.
INTEGRATION := ./integration
VM          := ./integration/vm
UNIT        := $$($(GO) list ./... | grep -v -e '/integration$$' -e '/integration/vm$$')

.DEFAULT_GOAL := build

.PHONY: build
build: ## build bin/nftfw
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/nftfw

.PHONY: test
test: deps unit integration bench-smoke ## install what is missing, then run all tests

.PHONY: deps
deps: ## install what the tests need, as root on Debian
	bash integration/install-deps.sh

.PHONY: unit
unit: ## run the unit tests
	$(GO) vet ./...
	$(GO) test -timeout 10m $(UNIT)
	@test "$$(id -u)" = 0 || echo 'NOT RUN: the parts of the unit tests that need root and a network namespace (reported as skipped with -v)'

.PHONY: integration
integration: build ## run the tests with real engines and packets, as root
	@if test "$$(id -u)" = 0; then \
		set -x; NFTFW_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout 30m $(INTEGRATION); \
	else \
		echo 'NOT RUN: all tests of ./integration: they need root for network namespaces and a Docker engine'; \
	fi

.PHONY: test-engines
test-engines: deps build ## run the integration tests on Debian's engine, those of later releases, and one built from its source
	NFTFW_BIN=$(CURDIR)/$(BIN) GO=$(GO) bash integration/test-engines.sh

.PHONY: test-vm
test-vm: build ## boot whole machines of Debian 12 and 13 in an emulator and test nftfw on them, as root
	bash integration/vm/install-deps.sh
	NFTFW_VM=1 NFTFW_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -v -timeout 40m $(VM)

.PHONY: test-kill
test-kill: deps build ## kill daemon and commands at random for KILLTIME, then compare kernel, state and what was acknowledged
	NFTFW_BIN=$(CURDIR)/$(BIN) NFTFW_KILLS=$(KILLTIME) $(GO) test -count=1 -v -timeout 0 -run '^TestScenario22KilledAtRandom$$' $(INTEGRATION)

.PHONY: soak
soak: deps build ## work on a host in every way for SOAKTIME, and report what the daemon takes
	NFTFW_BIN=$(CURDIR)/$(BIN) NFTFW_SOAK=$(SOAKTIME) $(GO) test -count=1 -v -timeout 0 -run '^TestSoak$$' $(INTEGRATION)

.PHONY: race
race: ## run the unit tests under the race detector
	$(GO) test -race -timeout 20m $(UNIT)

.PHONY: lint
lint: ## run golangci-lint as .golangci.yml says
	$(GO) run $(GOLANGCI_LINT) run ./...

.PHONY: vuln
vuln: ## look the dependencies up in the vulnerability database (needs the network)
	$(GO) run $(GOVULNCHECK) ./...

.PHONY: fuzz
fuzz: build ## run every fuzz test for FUZZTIME, and as long random policies on a real engine (root)
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done
	NFTFW_BIN=$(CURDIR)/$(BIN) NFTFW_DIFFERENTIAL=$(FUZZTIME) $(GO) test -count=1 -v -timeout 0 -run '^TestDifferential$$' $(INTEGRATION)

.PHONY: bench
bench: deps build ## measure nftfw beside its yardsticks, as root; BENCH='-only REGEXP' for a part
	$(GO) build -trimpath -o bin/bench ./integration/bench
	NFTFW_BIN=$(CURDIR)/$(BIN) bin/bench -out docs/bench $(BENCH)

.PHONY: bench-smoke
bench-smoke: build ## run the benchmark once with small sizes, as root, so that it does not rot
	@if test "$$(id -u)" = 0; then \
		set -ex; $(GO) build -trimpath -o bin/bench ./integration/bench; \
		NFTFW_BIN=$(CURDIR)/$(BIN) bin/bench -smoke; \
	else \
		echo 'NOT RUN: the benchmark: it needs root for network namespaces and a Docker engine'; \
	fi

.PHONY: bench-packages
bench-packages: ## run the benchmarks of the packages
	$(GO) test -run '^$$' -bench . -benchmem $(UNIT)

.PHONY: demo
demo: build ## install what is missing, then show nftfw at work in a lab of its own, as root
	bash integration/install-deps.sh demo
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/demo ./integration/demo
	@NFTFW_BIN=$(CURDIR)/$(BIN) bin/demo

.PHONY: docs
docs: ## write anew what in docs/ is made from the code
	$(GO) test ./policy -run '^(TestSchemaIsCurrent|TestPolicyReference)$$' -update
	$(GO) test ./cmd/nftfw -run '^TestCommandsReference$$' -update
	$(GO) run ./integration/paths

.PHONY: proto
proto: ## write anew the messages of etcd (needs protoc: Debian's protobuf-compiler)
	$(GO) build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	protoc --plugin=bin/protoc-gen-go --go_out=. --go_opt=paths=source_relative pkg/sources/etcdpb/etcd.proto

.PHONY: fmt
fmt: ## format as lint wants it
	$(GO) run $(GOLANGCI_LINT) fmt ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
	$(GO) clean ./...

# For install, which is run by root, who may have no Go.
$(BIN):
	$(MAKE) build

.PHONY: install
install: $(BIN) ## install the binary, the example policy and its schema below $(DESTDIR)$(PREFIX)
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/sbin/nftfw
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/nftfw docs/policy.example.yaml docs/policy.schema.json

.PHONY: install-unit
install-unit: install ## install the systemd unit as well
	sed 's#/usr/sbin/nftfw#$(PREFIX)/sbin/nftfw#' packaging/systemd/nftfw.service | \
		install -D -m 0644 /dev/stdin $(DESTDIR)/etc/systemd/system/nftfw.service

# What packages hold besides what lies in the tree. dpkg and rpm sort a ~ before
# the release that it leads to.
GOARCH          ?= $(shell $(GO) env GOARCH 2>/dev/null)
PACKAGE_VERSION ?= 0.1.0~$(shell git log -1 --format=%cd.%h --date=format:%Y%m%d%H%M%S 2>/dev/null || echo dev)
DIST            := dist
# The date of the man pages.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
export GOARCH PACKAGE_VERSION

.PHONY: dist
dist: ## build what goes into packages: binary, man pages, completions
	rm -rf $(DIST)/root
	mkdir -p $(DIST)/root/usr/share/man/man8 $(DIST)/root/completions
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(PACKAGE_VERSION)' -o $(DIST)/root/usr/sbin/nftfw ./cmd/nftfw
	TZ=UTC SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) GOARCH= $(GO) test -count=1 ./cmd/nftfw -run '^TestManPages$$' -args -man $(CURDIR)/$(DIST)/root/usr/share/man/man8
	gzip -9n $(DIST)/root/usr/share/man/man8/*.8
	for shell in bash zsh fish; do GOARCH= $(GO) run ./cmd/nftfw completion $$shell >$(DIST)/root/completions/nftfw.$$shell || exit 1; done

.PHONY: packages
packages: dist ## build the .deb and the .rpm into dist/ (takes nfpm from the Go module proxy)
	rm -f $(DIST)/*.deb $(DIST)/*.rpm
	GOARCH= GOBIN=$(CURDIR)/$(DIST) $(GO) install $(NFPM)
	$(DIST)/nfpm package --config packaging/nfpm.yaml --packager deb --target $(DIST)
	$(DIST)/nfpm package --config packaging/nfpm.yaml --packager rpm --target $(DIST)

.PHONY: test-packages
test-packages: ## install, upgrade, remove and purge the packages in a Debian root of their own (root)
	GO=$(GO) bash integration/test-packages.sh

.PHONY: image
image: dist ## build the container image as a tar for docker import, into dist/
	sh packaging/image/build.sh $(DIST)/root/usr/sbin/nftfw $(DIST)/nftfw-image.tar

PREFIX ?= /usr/local

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
