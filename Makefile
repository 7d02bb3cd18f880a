# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
# What `make test` and `make lint` look at: one package, or all of them.
PKG ?= ./...
# More for `go test`: make test TESTFLAGS='-run TestAttach'
TESTFLAGS ?=
# A file that gets the numbers of passed, failed and skipped tests.
COUNTS ?=
FUZZTIME ?= 10s

# git says nothing in a source archive, nor in a tree that another user owns; there the
# go command must not ask it either.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := $(if $(VERSION),-X main.release=$(VERSION))
ifeq ($(shell git status --porcelain >/dev/null 2>&1 && echo works),)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif
LINT := $(GO) tool -modfile=tools.mod golangci-lint
CLANG_FORMAT := clang-format-14
C_FILES := $(wildcard bpf/*.c bpf/*.h bpf/test/*.c bpf/test/*.h)
GENERATE := BPF2GO_CFLAGS="-I/usr/include/$$(uname -m)-linux-gnu" $(GO) generate gen.go
# Neither the binary nor its tests use cgo, whatever compiler is at hand.
export CGO_ENABLED := 0
# Root's tools are not on every user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(CURDIR)/bin

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build bin/xgw; needs Go alone
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/xgw ./cmd/xgw

.PHONY: man
man: build ## manual pages and completions into bin/share
	bin/xgw manual bin/share deploy/gateway.yaml

NFPM := $(GO) build -modfile=deploy/package/nfpm.mod -o bin/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm

.PHONY: package
package: ## .deb and .rpm for amd64 and arm64 into bin/packages
	$(NFPM)
	deploy/package/build

.PHONY: demo
demo: ## the whole gateway on real traffic in a lab of namespaces (root; KEEP=1 stays up)
	@deploy/setup.sh build
	@$(MAKE) build
	@if (( EUID == 0 )); then \
		exec bin/xgw demo $(if $(filter-out 0,$(KEEP)),--keep); \
	elif command -v sudo >/dev/null; then \
		echo 'demo: the lab needs root: asking sudo'; \
		exec sudo bin/xgw demo $(if $(filter-out 0,$(KEEP)),--keep); \
	else \
		echo 'demo: the lab needs root for namespaces and XDP, and there is no sudo: run make demo as root' >&2; exit 1; \
	fi

.PHONY: setup
setup:
	@deploy/setup.sh test

.PHONY: test
test: setup ## lint and every test; as a plain user those that need root are skipped by name
	@bad=0; $(MAKE) lint || bad=1; $(MAKE) go-test || bad=1; exit $$bad

# Packages run one after another: tests that need root share one kernel. They are compiled
# beforehand, on all cores.
.PHONY: go-test
go-test:
	$(GO) build -o /dev/null $(PKG)
	@$(GO) build -modfile=tools.mod -o bin/h2spec github.com/summerwind/h2spec/cmd/h2spec 2>/dev/null || echo 'test: h2spec could not be built: what needs it is skipped'
	@$(NFPM) 2>/dev/null || echo 'test: nfpm could not be built: what needs it is skipped'
	$(GO) test -json -count=1 -p 1 -timeout 20m $(TESTFLAGS) $(PKG) | $(GO) run ./vmtest/testsum $(if $(COUNTS),-counts $(COUNTS))

.PHONY: lint
lint: ## golangci-lint (gofmt, vet, the import arrows), clang-format, shell syntax
	@bad=0; \
	$(LINT) run $(PKG) || bad=1; \
	if command -v $(CLANG_FORMAT) >/dev/null; then \
		$(CLANG_FORMAT) --dry-run -Werror $(C_FILES) || bad=1; \
	else echo 'lint: $(CLANG_FORMAT) is not installed: the C code was not looked at'; fi; \
	for script in deploy/*.sh deploy/package/{build,postinstall,preremove,postremove} vmtest/run vmtest/guest .ci/run; do bash -n "$$script" || bad=1; done; \
	exit $$bad

.PHONY: format
format: ## lay out Go and C code
	gofmt -w $$(find . -name '*.go')
	$(CLANG_FORMAT) -i $(C_FILES)

.PHONY: generate
generate: ## compile the BPF objects with the pinned clang, and telemetry.proto
	@deploy/setup.sh generate
	$(GENERATE)

.PHONY: check-generate
check-generate: ## generate elsewhere and compare with what is in the tree
	@deploy/setup.sh generate
	@copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	cp -r --parents go.mod go.sum tools.mod tools.sum gen.go bpf pkg/telemetry/telemetrypb "$$copy"; \
	find "$$copy" -name '*.pb.go' -delete; \
	mapfile -t dirs < <(grep -o -e '-output-dir [^ ]*' gen.go | cut -d ' ' -f 2 | sort -u); \
	(( $${#dirs[@]} )) || { echo 'check-generate: gen.go names no -output-dir' >&2; exit 1; }; \
	(cd "$$copy" && mkdir -p "$${dirs[@]}" && $(GENERATE)); \
	same=0; differ=0; \
	while read -r file; do \
		if cmp "$$file" "$$copy/$$file"; then same=$$((same + 1)); else differ=$$((differ + 1)); fi; \
	done < <({ find pkg -name '*.pb.go'; find "$${dirs[@]}" -name '*_bpfe[lb].*'; cd "$$copy" && find pkg -name '*.pb.go' && find "$${dirs[@]}" -type f; } | sort -u); \
	(( differ == 0 )) || { echo "check-generate: $$differ files differ from what their sources give: run make generate" >&2; exit 1; }; \
	echo "check-generate: $$same files are what their sources give"

.PHONY: test-vm
test-vm: ## root tests on other kernels in virtual machines (KERNELS="5.10 7.2" picks some)
	vmtest/run $(KERNELS)

# Up to Go 1.26 the engine's own end of time now and then comes out as a failure, "context deadline
# exceeded" (go.dev/issue/75804). It is one only with an input that failed, which is then written down.
# What is new is not made smaller: that can take all of the time.
.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME=10s
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	$(GO) test -list '^Fuzz' $(PKG) | awk '/^Fuzz/ { name[++n] = $$1 } $$1 == "ok" { for (i = 1; i <= n; i++) print $$2, name[i]; n = 0 }' | { \
		n=0; while read -r package target; do \
			echo "fuzz: $$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "$$package" </dev/null 2>&1 | tee "$$log" || { \
				grep -qx ' *context deadline exceeded' "$$log" && ! grep -qE 'Failing input|panic:|hung or terminated' "$$log"; } || exit 1; \
			n=$$((n + 1)); \
		done; echo "fuzz: $$n targets, no finding"; }

.PHONY: bench
bench: build ## CPU per request beside nginx and HAProxy (root)
	@deploy/setup.sh bench
	bench/run.sh

.PHONY: bench-packet
bench-packet: ## nanoseconds per packet beside xdp-filter, and a dropped SYN beside SYN cookies (root)
	@deploy/setup.sh bench
	$(GO) run ./bench/packet
	$(GO) run ./bench/synflood

.PHONY: bench-telemetry
bench-telemetry: build ## time and bytes of a scrape, p99 and CPU per request with telemetry beside without (root)
	@deploy/setup.sh bench
	$(GO) run ./bench/telemetry

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
