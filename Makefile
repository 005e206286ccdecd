# The project's commands. `make` alone lists them.
#
# On a machine with only Rust, Python and apt, from a clean clone:
#   make test      everything that runs
#   make verify    the gate: make lint, then make test
#
# One build for everything. Each of these choices keeps cargo from compiling a dependency twice:
#   - one profile, `dev`, which is optimised enough to run real clients against (see Cargo.toml);
#   - always `--workspace --all-targets`: cargo unifies the features of what is built together, so that `-p casbah` here
#     and the workspace there would be two builds of tokio;
#   - clippy and rustdoc share the checked (not compiled) dependencies with each other;
#   - RUSTFLAGS is never set here, it would throw away what a developer's own `cargo build` has built. Warnings are made
#     errors where that costs nothing: clippy's own arguments, and RUSTDOCFLAGS.
# `--locked`: what is tested is what Cargo.lock says, and no gate changes a file.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The parts of a gate take turns: cargo holds one lock, and the closing line has to be the last.
.NOTPARALLEL:

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: verify
verify: lint test ## The gate: lint, then test; changes nothing

.PHONY: lint
lint: fmt-check clippy doc no-c-crypto manifests ## What can be said without running anything

.PHONY: fix
fix: ## Let the tools mend what they can: formatting, clippy's suggestions
	@cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	@cargo fmt --all

.PHONY: test-env
test-env: ## What the tests run: bubblewrap, systemd-analyze, Bazel, BuildStream in .venv, kubectl and promtool in .venv-k8s
	@scripts/test-env

# `cargo build` first: tests start the program, and `cargo test` alone does not link it. They are told where it is, or
# each would ask cargo for it (`-p casbah`, see above). The tests' own closing line is the last thing printed.
test: export CASBAH_BINARY := $(abspath $(or $(CARGO_TARGET_DIR),target))/debug/casbah
.PHONY: test
test: test-env ## Build everything once and run every test, the real clients' included
	@cargo build --workspace --all-targets --locked
	@cargo test --workspace --locked --no-fail-fast

.PHONY: fmt-check
fmt-check:
	@cargo fmt --all --check

.PHONY: clippy
clippy:
	@cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: doc
doc:
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# TLS is rustls with ring. aws-lc-sys gets in by a default feature somewhere below and costs minutes of C.
.PHONY: no-c-crypto
no-c-crypto:
	@tree="$$(cargo tree --workspace --edges all --prefix none --locked)"; \
	if grep '^aws-lc-sys ' <<< "$$tree"; then \
	    echo "aws-lc-sys is among the dependencies; who wants it: cargo tree --workspace -i aws-lc-sys" >&2; \
	    exit 1; \
	fi

.PHONY: manifests
manifests: ## What deploy/k8s says to Kubernetes and to Prometheus: rendered, and held against their schemas
	@scripts/test-env lint
	@deploy/k8s/check.sh

.PHONY: image
image: ## A container image in target/image (an OCI layout), without a container engine
	@cargo build --profile dist --locked --package casbah --bin casbah
	@rm -rf target/image
	@deploy/oci-image $(or $(CARGO_TARGET_DIR),target)/dist/casbah target/image
