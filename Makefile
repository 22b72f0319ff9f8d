.DEFAULT_GOAL := help
.PHONY: help demo test quick lint image cluster-up cluster-down

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-14s%s\n", $$1, $$2 }'

# Without debug information, which takes a third of the time of a first build.
demo: ## watch it work, without a cluster
	CARGO_PROFILE_DEV_DEBUG=0 cargo run --locked --example demo

test: ## all tests, as CI runs them (root; hack/test --help)
	hack/test

quick: ## formatting, lints and unit tests
	hack/test --quick

lint: ## formatting, clippy, shellcheck
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --features failpoints -- -D warnings
	shellcheck .ci/run deploy/local-disks hack/*

image: ## the container image: target/image.tar
	hack/image target/image.tar

cluster-up: ## a real cluster of two nodes on this machine (root)
	hack/cluster up --nodes 2

cluster-down: ## takes it away again
	hack/cluster down
