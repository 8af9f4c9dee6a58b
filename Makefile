# Bloomery. `make help` lists the targets; everything that is made lands under out/.

SHELL      := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

OUT     := $(CURDIR)/out
TAGS    := libsqlite3
# Long runs that are no tests have tags of their own, so that no test is skipped; vet and lint read them too.
ALLTAGS := $(TAGS),bench,faults,guest,nightly
TOOLS   := $(OUT)/tools
BIN     := $(OUT)/bin
GO      := go
SUDO    := $(shell [ "$$(id -u)" -eq 0 ] || echo "sudo --preserve-env=PATH,HOME,GOPATH,GOCACHE,GOMODCACHE,CI")
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# Namespaces, taps and loop devices need root; the virtual rack's tests run alone, since its machines need both cores.
GOTESTSUM := $(SUDO) env PATH="$$PATH" BLOOMERY_OUT=$(OUT) $(TOOLS)/gotestsum --format pkgname-and-test-fails -- -tags $(TAGS)

.PHONY: help setup build image images-all deb demo test nightly check generate bench faults lint clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## install the Debian packages that are missing
	@sh tools/setup.sh

$(TOOLS)/.stamp: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	@echo 'building the developers'\'' tools (once)'
	@cd tools && $(GO) build -o $(TOOLS)/ tool
	@touch $@

build: setup ## build the three commands into out/bin
	@mkdir -p $(BIN)
	@CGO_ENABLED=1 $(GO) build -tags $(TAGS) -trimpath -ldflags '-s -w' -o $(BIN)/bloomeryd ./cmd/bloomeryd
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/bloomery ./cmd/bloomery
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $(BIN)/bloomery-agent ./cmd/bloomery-agent

# The names of the Debian images: RELEASE.raw is a disk, RELEASE-rootfs.tar.zst a root file system; beside each stands what it converts to.
RECIPE  := images/recipes/debian/build
CONVERT := $(BIN)/bloomery image convert
define debian-images
	@mkdir -p $(OUT)/images
	@$(SUDO) $(RECIPE) $(1) disk $(OUT)/images/$(1).raw & disk=$$!; failed=0; \
		$(SUDO) $(RECIPE) $(1) rootfs $(OUT)/images/$(1)-rootfs.tar.zst || failed=1; wait $$disk || failed=1; exit $$failed
	@$(SUDO) $(CONVERT) $(OUT)/images/$(1).raw --out $(OUT)/images/$(1)
	@$(SUDO) $(CONVERT) $(OUT)/images/$(1)-rootfs.tar.zst --out $(OUT)/images/$(1)-rootfs
endef

image: build ## build the agent image and Debian 12, as a disk and as a root file system (skipped when nothing changed)
	@$(SUDO) $(BIN)/bloomery agent-image build --agent $(BIN)/bloomery-agent --sysroot $(OUT)/agent-sysroot --out $(OUT)/agent-image
	$(call debian-images,debian-12)

images-all: image ## build every image that there is a recipe for: Debian 13 too
	$(call debian-images,debian-13)

# A Debian version: the last tag's, or 0, then the commit's time and id, so that later commits are upgrades.
DEB_VERSION ?= $(shell git describe --tags --abbrev=0 2>/dev/null | sed 's/^v//' | grep -E '^[0-9]' || echo 0)+git$(shell git log -1 --date=format:%Y%m%d%H%M%S --format=%cd.%h 2>/dev/null)

deb: build ## the Debian package, out/bloomery_VERSION_ARCHITECTURE.deb
	@packaging/build-deb $(BIN) '$(DEB_VERSION)' $(OUT)

# What TestPackage installs beside the package: its machine has no network.
$(OUT)/libraries/.stamp: tools/fetch-libraries.sh
	@tools/fetch-libraries.sh $(OUT)/libraries
	@touch $@

demo: image ## power-on to customer's login in a virtual rack; KEEP=1 leaves the rack up
	@$(SUDO) $(BIN)/bloomery lab demo $(if $(KEEP),--keep) --image-file $(OUT)/images/debian-12 --agent-image $(OUT)/agent-image --report $(OUT)/demo.json

check: setup $(TOOLS)/.stamp ## format, vet, lint and unit tests: the inner loop
	@unformatted=$$(gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	@$(GO) vet -tags $(ALLTAGS) ./...
	@$(MAKE) --no-print-directory lint
	@$(GO) test -tags $(TAGS) -short ./...

lint: $(TOOLS)/.stamp ## staticcheck, and whether generated code is current
	@$(TOOLS)/staticcheck -tags $(ALLTAGS) ./...
	@cd api && PATH=$(TOOLS):$$PATH $(TOOLS)/buf lint
	@$(MAKE) --no-print-directory generate GENERATE_OUT=$(OUT)/.generated
	@for f in $$(cd $(OUT)/.generated && find . -name '*.go'); do cmp -s $(OUT)/.generated/$$f api/$$f || { echo "api/$$f is stale: run make generate"; exit 1; }; done

GENERATE_OUT ?= $(CURDIR)/api
generate: $(TOOLS)/.stamp ## generate the API's Go code
	@mkdir -p $(GENERATE_OUT)
	@cd api && PATH=$(TOOLS):$$PATH $(TOOLS)/buf generate -o $(GENERATE_OUT)

test: image $(TOOLS)/.stamp $(OUT)/libraries/.stamp ## every test, with the race detector and real installs in the virtual rack
	@$(MAKE) --no-print-directory lint
	@$(GOTESTSUM) -race -timeout 20m -p 2 $$($(GO) list -tags $(TAGS) ./... | grep -v '/lab/e2e$$')
	@$(GOTESTSUM) -timeout 30m -count 1 ./lab/e2e

nightly: image ## every layout of docs/layouts installed, started again and held against its plan, in virtual racks, into out/nightly.json
	@$(SUDO) env PATH="$$PATH" BLOOMERY_OUT=$(OUT) BLOOMERY_LAYOUTS_REPORT=$(OUT)/nightly.json $(GO) test -tags $(TAGS),nightly -count 1 -timeout 90m -v -run '^TestLayouts$$' ./lab/e2e

bench: image ## ratios of ours to peers in the same run, into out/bench.json
	@$(SUDO) env PATH="$$PATH" $(GO) run ./images/bench --image $(OUT)/images/debian-12 --raw $(OUT)/images/debian-12.raw --report $(OUT)/bench.json
	@$(SUDO) env PATH="$$PATH" BLOOMERY_NETBOOT_REPORT=$(OUT)/bench.json $(GO) test -tags $(TAGS),bench -count 1 -timeout 5m -run '^TestBootStormFigures$$' ./netboot
	@$(SUDO) env PATH="$$PATH" BLOOMERY_SCALE_REPORT=$(OUT)/bench.json $(GO) test -tags $(TAGS),bench -count 1 -timeout 15m -run '^TestScale$$' -v ./coordinator/scale

ROUNDS ?= 200
faults: setup ## break a rack ROUNDS times while it works and judge its history (SEED=N repeats a run's choices, FAULT=NAME does one), then the image writer, into out/faults.json
	@$(SUDO) env PATH="$$PATH" BLOOMERY_FAULTS_ROUNDS=$(ROUNDS) BLOOMERY_FAULTS_SEED=$(SEED) BLOOMERY_FAULTS_ONLY=$(FAULT) BLOOMERY_FAULTS_REPORT=$(OUT)/faults.json BLOOMERY_FAULTS_LOGS=$(OUT)/faults-logs \
		$(GO) test -tags $(TAGS),faults -count 1 -v -timeout 60m -run '^TestManyRounds$$' ./coordinator/faults
	@$(SUDO) env PATH="$$PATH" BLOOMERY_WRITE_FAULTS_REPORT=$(OUT)/faults.json $(GO) test -tags $(TAGS) -count 1 -timeout 5m -run '^TestWriteFaults$$' ./images

clean: ## remove what was made
	@$(SUDO) rm -rf $(OUT)
