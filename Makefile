# Each target is one or two plain commands; `make help` lists them.
# Variables: ARGS and DEMO_DIR and STACK (embedded | real) for `demo`, DATA_DIR (recordings) for `demo` and `test`,
# ROUNDS for `long`, PROFILE (release | dev) and BENCH_… (tests/src/bench/mod.rs) for `bench-edge`, BROKERS and LAKE for `aggregator`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo aggregator test lint long audit bench bench-aggregator bench-edge

SETUP := deployment-manifests/local/setup
# Where rustup puts cargo, for shells that were opened before it was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin
ARGS ?=
STACK ?= embedded
DEMO_DIR ?=
ROUNDS ?= 1000
PROFILE ?= release
PROFILE_DIR = $(CURDIR)/target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
BROKERS ?= 127.0.0.1:9092
LAKE ?= ./lake
# The scenarios and the demo start the programs from here.
export EDGE_MODULE_BIN ?= $(CURDIR)/target/debug/edge-module
export CLOUD_AGGREGATOR_BIN ?= $(CURDIR)/target/debug/cloud-aggregator

help: ## List the targets
	@sed -n 's/^\([a-z-]*\): *## /\1\t/p' Makefile | expand -t 12

setup: ## Install what is missing for everything below
	@$(SETUP) demo test lint

demo: ## Three simulated machines, one fault, one network cut: STACK=real for mosquitto and Apache Kafka, ARGS=--once to end by itself
	@$(SETUP) $(if $(filter real,$(STACK)),test,demo)
	cargo build --locked --workspace --bins
	@STACK=$(STACK) DEMO_DIR=$(DEMO_DIR) target/debug/demo $(ARGS)

aggregator: ## Read the Kafka topics of BROKERS into the Delta tables of LAKE, and go on
	@$(SETUP) reader
	cargo build --locked --workspace --bins
	AGGREGATOR__KAFKA__BROKERS=$(BROKERS) AGGREGATOR__LAKE__LOCATION=$(LAKE) target/debug/cloud-aggregator run

test: ## Unit, property, simulation and doc tests, and the scenarios with mosquitto and Apache Kafka
	@$(SETUP) test
	cargo build --workspace --locked --bins --tests --features e2e-tests/services
	cargo test --workspace --locked --features e2e-tests/services

lint: ## Format, clippy and rustdoc, warnings are errors
	@$(SETUP) lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --features e2e-tests/services -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

long: ## New seeds for the simulation and the property tests, new kills, power cuts, full disks and rebalances, ROUNDS of each
	@$(SETUP) test
	SIMULATION_ROUNDS=$(ROUNDS) PROPTEST_CASES=$(ROUNDS) JOURNAL_ROUNDS=$(ROUNDS) CORRUPTION_CASES=$(ROUNDS) cargo test --workspace --locked
	POWER_CUT_MODEL=ext4 JOURNAL_ROUNDS=$(ROUNDS) cargo test --locked -p edge-module --test journal_faults power_cut
	cargo build --workspace --locked --bins --tests --features e2e-tests/services
	KILL_ROUNDS=$(ROUNDS) REBALANCE_ROUNDS=$$(($(ROUNDS) / 5)) cargo test --workspace --locked --features e2e-tests/services --test scenarios -- \
	  --nocapture exactly_once:: rebalances::

audit: ## Licences, bans, sources and advisories of the dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked --version 0.20.2 cargo-deny
	cargo deny --locked check bans licenses sources
	@if cargo deny --locked fetch db; then cargo deny --locked check --disable-fetch advisories; \
	else echo "advisories NOT checked: their database cannot be reached"; fi

bench: ## The benchmarks, in the release profile
	@$(SETUP) demo
	cargo bench --workspace --locked

bench-aggregator: ## What counting and storing costs, with Apache Kafka: BENCH_RECORDS, BENCH_RUNS
	@$(SETUP) test
	cargo build --workspace --locked --bins --features e2e-tests/services --profile $(PROFILE)
	@BENCH_PROFILE=$(PROFILE) CLOUD_AGGREGATOR_BIN=$(PROFILE_DIR)/cloud-aggregator $(PROFILE_DIR)/bench_aggregator

bench-edge: ## How fast a stop is and a backlog leaves, with mosquitto and Apache Kafka: BENCH_SHARE=0.1 for a short run
	@$(SETUP) test
	cargo build --workspace --locked --bins --features e2e-tests/services --profile $(PROFILE)
	@BENCH_PROFILE=$(PROFILE) EDGE_MODULE_BIN=$(PROFILE_DIR)/edge-module $(PROFILE_DIR)/bench_edge
