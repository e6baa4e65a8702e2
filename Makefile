# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# What writes the Go code of api/, beside Debian's protoc.
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
# The modules of this repository whose code is ours; integration/tools only pins versions.
MODULES := . integration
# Longest time that the tests of one package may take.
TEST_TIMEOUT ?= 20m
GOTEST := go test -timeout $(TEST_TIMEOUT) -json

# Builds and tests must not need a usable git: in CI the clone may belong to somebody else.
export GOFLAGS := -buildvcs=false $(GOFLAGS)

sources = find . -path ./.git -prune -o -path ./bin -prune -o -name '*.go' -print

.PHONY: help build test torture packages lint lint-format lint-headers lint-names lint-tidy lint-code lint-generated lint-man generate generators man install demo bench clean

help: ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

build: ## build the daemon and squashctl into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/ ./cmd/...

# containerd's test support skips what needs root unless a flag says that it may be done, which only packages that use
# it know.
rooted = $(shell go list -f '{{range .TestImports}}{{if eq . "github.com/containerd/containerd/v2/pkg/testutil"}}{{$$.ImportPath}}{{end}}{{end}}' ./...)
others = $(filter-out $(rooted),$(shell go list ./...))

# Data races are looked for in the main module; integration tests run other programs. The tests that kill the process
# at every effect on the disk need a build of their own, and the readers with little memory one without the detector.
test: build packages ## run all tests, with a real containerd too; needs root
	@go build -o bin/testreport ./internal/testreport
	@{ failed=0; \
	   $(GOTEST) -race $(others) || failed=1; \
	   $(GOTEST) -race $(rooted) -test.root || failed=1; \
	   $(GOTEST) -tags failpoints -parallel 4 -run 'TestAKill(After|OfTheStart)|TestReadersUnder' ./snapshotter || failed=1; \
	   cd integration && $(GOTEST) ./... || failed=1; \
	   exit $$failed; } | bin/testreport

# As in the tests, but for longer: power cuts at random moments, random images against overlayfs.
torture: packages ## run the random tests for half an hour or so; needs root
	go test ./snapshotter -test.root -timeout 2h -v -run TestAPowerCut -cuts 200
	go test ./snapshotter -test.root -timeout 2h -run RandomImages -random-images 5000

# Programs that only some tests want. A test that misses one says so.
packages:
	@missing=""; \
	 command -v fsck.erofs >/dev/null || missing="erofs-utils"; \
	 command -v mkfs.xfs >/dev/null || missing="$$missing xfsprogs"; \
	 command -v chromium >/dev/null || missing="$$missing chromium"; \
	 if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
	   apt="env DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq"; \
	   for p in $$missing; do \
	     $$apt install -y $$p >/dev/null 2>&1 || { $$apt update && $$apt install -y $$p; } >/dev/null 2>&1 || true; \
	   done; \
	 fi; \
	 for p in fsck.erofs:erofs-utils mkfs.xfs:xfsprogs chromium:chromium; do \
	   command -v $${p%:*} >/dev/null || echo "$${p%:*} is missing (package $${p#*:}): the tests that want it are skipped"; \
	 done

lint: lint-format lint-headers lint-names lint-tidy lint-generated lint-man lint-code ## check format, headers, names, go.mod, generated code, man pages, and code with vet and staticcheck

lint-format:
	@bad=$$($(sources) | xargs gofmt -l); \
	 [ -z "$$bad" ] || { printf 'not formatted, run gofmt -w:\n%s\n' "$$bad"; exit 1; }

lint-headers:
	@bad=$$($(sources) | while read -r f; do \
	   [ "$$(head -n 1 "$$f")" = "// SPDX-License-Identifier: Apache-2.0" ] || echo "$$f"; done); \
	 [ -z "$$bad" ] || { printf 'first line is not "// SPDX-License-Identifier: Apache-2.0":\n%s\n' "$$bad"; exit 1; }

lint-names:
	@bad=$$($(sources) | grep -E '(^|/)(utils?|commons?|helpers?|misc|types)(/|\.go$$|_test\.go$$)' || true); \
	 [ -z "$$bad" ] || { printf 'named for nothing in particular; name it for what it owns:\n%s\n' "$$bad"; exit 1; }

lint-tidy:
	@for m in $(MODULES); do go -C $$m mod tidy -diff || { echo "$$m/go.mod is not tidy, run go mod tidy"; exit 1; }; done

lint-code:
	@for m in $(MODULES); do (cd $$m; go vet ./...; go run $(STATICCHECK) ./...); done

generate: generators ## write the Go code of api/ from its .proto files; installs protoc
	@command -v protoc >/dev/null || { \
	   apt="env DEBIAN_FRONTEND=noninteractive timeout 120 apt-get -qq"; \
	   $$apt install -y protobuf-compiler >/dev/null 2>&1 || \
	   { $$apt update && $$apt install -y protobuf-compiler; } >/dev/null; \
	 } || { echo "protoc is missing and could not be installed (package protobuf-compiler)"; exit 1; }
	@$(call protoc,api)

generators:
	@GOBIN=$(CURDIR)/bin/generators go install $(PROTOC_GEN_GO)
	@GOBIN=$(CURDIR)/bin/generators go install $(PROTOC_GEN_GO_GRPC)

# $(call protoc,DIR) writes the Go code of all .proto files of api/ into DIR.
protoc = protoc -I api \
	   --plugin=bin/generators/protoc-gen-go --go_out=$(1) --go_opt=paths=source_relative \
	   --plugin=bin/generators/protoc-gen-go-grpc --go-grpc_out=$(1) --go-grpc_opt=paths=source_relative \
	   $$(cd api && find . -name '*.proto' -printf '%P\n' | sort)

# The version of protoc, which generated files name, may differ.
lint-generated:
	@if ! command -v protoc >/dev/null; then echo "protoc is missing (package protobuf-compiler): it is not checked whether generated code is up to date"; exit 0; fi; \
	 $(MAKE) --no-print-directory generators; \
	 fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	 $(call protoc,"$$fresh"); \
	 diff -r -I '^// .*protoc  *v' -x '*.proto' -x doc.go api "$$fresh" || { echo 'generated code is not up to date, run make generate'; exit 1; }

lint-man:
	@go test ./cmd/... -run TestManualIsUpToDate >/dev/null || { echo 'contrib/man is not up to date, run make man'; exit 1; }

# Tests of the programs compare the pages with what the programs say of themselves.
man: ## write contrib/man from the programs' help
	@mkdir -p contrib/man && rm -f contrib/man/*.8
	@go test -count=1 ./cmd/... -run TestManualIsUpToDate -update >/dev/null || go test -count=1 ./cmd/... -run TestManualIsUpToDate

# As packagers want it; the configuration is the administrator's. /usr/local/lib/systemd/system is where systemd looks, too.
PREFIX ?= /usr/local
to = $(DESTDIR)$(PREFIX)

install: build ## install programs, units, man pages and completions below DESTDIR and PREFIX (/usr/local)
	@install -d $(to)/bin $(to)/lib/systemd/system $(to)/share/man/man8 $(to)/share/bash-completion/completions \
	   $(to)/share/zsh/site-functions $(to)/share/fish/vendor_completions.d
	@install -m 0755 bin/containerd-squash-grpc bin/squashctl $(to)/bin/
	@install -m 0644 contrib/systemd/containerd-squash-grpc.socket $(to)/lib/systemd/system/
	@sed 's|/usr/local/bin/|$(PREFIX)/bin/|' contrib/systemd/containerd-squash-grpc.service > $(to)/lib/systemd/system/containerd-squash-grpc.service
	@chmod 0644 $(to)/lib/systemd/system/containerd-squash-grpc.service
	@install -m 0644 contrib/man/*.8 $(to)/share/man/man8/
	@bin/squashctl completion bash > $(to)/share/bash-completion/completions/squashctl
	@bin/squashctl completion zsh > $(to)/share/zsh/site-functions/_squashctl
	@bin/squashctl completion fish > $(to)/share/fish/vendor_completions.d/squashctl.fish
	@chmod 0644 $(to)/share/bash-completion/completions/squashctl $(to)/share/zsh/site-functions/_squashctl $(to)/share/fish/vendor_completions.d/squashctl.fish

demo: build ## compare squash with overlayfs on an image like those of CI runners; needs root
	@cd integration && go run ./cmd/demo

# What is compared decompresses layers with igzip if it is installed (Debian: isal), as on a node.
# BENCH has flags, for instance BENCH='-rounds 5 -images runner -setups overlayfs,squash-zstd'. MKFS_EROFS names another
# mkfs.erofs than that in PATH. What is downloaded and built for the large image is kept in squash-bench below the user's
# cache directory, or in SQUASH_BENCH_CACHE.
bench: ## compare snapshotters on two images and write docs/bench; needs root, and the network once
	@cd integration && go run ./cmd/bench $(BENCH)

clean: ## remove what was built
	rm -rf bin
