# Each target is one or two plain commands; `make help` lists them.
# Variables: ARGS and DEMO_DIR and STACK (embedded | real) for `demo`, DATA_DIR (recordings) for `demo` and `test`,
# ROUNDS and LAKE_HOURS (simulated, of commits each 5 s) for `long`, FUZZ_SECONDS (each of two decoders) for `fuzz` and `long`, PROFILE (release | dev) and BENCH_… (tests/src/bench/mod.rs) for `bench-edge`, BROKERS and LAKE for `aggregator`,
# DATA and OUT for `evaluate`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo aggregator evaluate test lint fuzz long audit bench bench-aggregator bench-spark bench-edge images image-arm64 deb deb-try readers spark

SETUP := deployment-manifests/local/setup
# Where rustup puts cargo, for shells that were opened before it was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin
ARGS ?=
STACK ?= embedded
DEMO_DIR ?=
ROUNDS ?= 1000
LAKE_HOURS ?= 720
FUZZ_SECONDS ?= 30
# Coverage counters of LLVM, which stable compilers have: what cargo-fuzz passes, too.
FUZZ_FLAGS = -Cpasses=sancov-module -Ccodegen-units=1 $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_DIR = target/fuzz
PROFILE ?= release
PROFILE_DIR = $(CURDIR)/target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
BROKERS ?= 127.0.0.1:9092
DATA ?=
OUT ?=
LAKE ?= ./lake
# Scenarios wait for servers and clocks more than they compute.
export RUST_TEST_THREADS ?= 4
# The scenarios and the demo start the programs from here.
export EDGE_MODULE_BIN ?= $(CURDIR)/target/debug/edge-module
export CLOUD_AGGREGATOR_BIN ?= $(CURDIR)/target/debug/cloud-aggregator

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\): *## /\1\t/p' Makefile | expand -t 12

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

evaluate: ## Judge the recordings of DATA by the committed models and limits through the edge module: a report and a picture in OUT
	@test -n "$(DATA)" -a -n "$(OUT)" || { echo "name both: make evaluate DATA=folder-of-recordings OUT=folder-for-the-report" >&2; exit 64; }
	@$(SETUP) model
	cargo build --locked --workspace --bins
	@data=$$(realpath -m -- "$(DATA)") && out=$$(realpath -m -- "$(OUT)") && cd edge-module/model && $(CURDIR)/target/setup/model-venv/bin/python -m machine_model evaluate --data "$$data" --out "$$out" --edge-module $(CURDIR)/target/debug/edge-module

test: ## Unit, property, simulation and doc tests, and the scenarios with mosquitto and Apache Kafka
	@$(SETUP) test
	cargo build --workspace --locked --bins --tests --features e2e-tests/services
	cargo test --workspace --locked --features e2e-tests/services

lint: ## Format, clippy and rustdoc, warnings are errors
	@$(SETUP) lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --features e2e-tests/services -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

fuzz: ## Any bytes for both decoders, guided by coverage, FUZZ_SECONDS each; what fails lies in target/fuzz and belongs into the corpus
	@$(SETUP) demo
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --manifest-path shared-proto/fuzz/Cargo.toml --target $(FUZZ_HOST) --target-dir $(FUZZ_DIR)
	@cd $(FUZZ_DIR) && for decoder in json protobuf; do mkdir -p corpus/$$decoder && $(FUZZ_HOST)/debug/$$decoder -max_total_time=$(FUZZ_SECONDS) \
	    -max_len=8192 -timeout=10 -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1 -dict=$(CURDIR)/shared-proto/fuzz/json.dict \
	    -artifact_prefix=$$decoder- corpus/$$decoder $(CURDIR)/shared-proto/fuzz/corpus/$$decoder || exit 1; done

long: ## New seeds for the simulation and the property tests, new kills, power cuts, full disks and rebalances, ROUNDS of each; a month of the lake
	@$(SETUP) test
	SIMULATION_ROUNDS=$(ROUNDS) PROPTEST_CASES=$(ROUNDS) JOURNAL_ROUNDS=$(ROUNDS) CORRUPTION_CASES=$(ROUNDS) cargo test --workspace --locked
	$(MAKE) fuzz FUZZ_SECONDS=$(ROUNDS)
	POWER_CUT_MODEL=ext4 JOURNAL_ROUNDS=$(ROUNDS) cargo test --locked -p edge-module --test journal_faults power_cut
	cargo build --workspace --locked --bins --tests --features e2e-tests/services
	KILL_ROUNDS=$(ROUNDS) REBALANCE_ROUNDS=$$(($(ROUNDS) / 5)) DISK_ROUNDS=40 cargo test --workspace --locked --features e2e-tests/services --test scenarios -- \
	  --nocapture exactly_once:: rebalances:: lake_disk::
	HOURS=$(LAKE_HOURS) cargo run --locked --release -p cloud-aggregator --example lake_over_days

audit: ## Licences, bans, sources and advisories of the dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked --version 0.20.2 cargo-deny
	cargo deny --locked check bans licenses sources
	@if cargo deny --locked fetch db; then cargo deny --locked check --disable-fetch advisories; \
	else echo "advisories NOT checked: their database cannot be reached"; fi

bench: ## The benchmarks, in the release profile
	@$(SETUP) demo
	cargo bench --workspace --locked

bench-aggregator: ## What counting, storing and alerting costs, with Apache Kafka: BENCH_PARTS, BENCH_RECORDS, BENCH_RUNS, BENCH_SHARE=0.1 for a short run
	@$(SETUP) test
	cargo build --workspace --locked --bins --features e2e-tests/services --profile $(PROFILE)
	@BENCH_PROFILE=$(PROFILE) CLOUD_AGGREGATOR_BIN=$(PROFILE_DIR)/cloud-aggregator $(PROFILE_DIR)/bench_aggregator

bench-spark: ## The same topics read by the aggregator and by a Spark job, one after the other: BENCH_RECORDS, BENCH_RUNS
	@$(SETUP) spark
	BENCH_PARTS=windows,raw,spark $(MAKE) bench-aggregator

bench-edge: ## How fast a stop is and a backlog leaves, with mosquitto and Apache Kafka: BENCH_SHARE=0.1 for a short run
	@$(SETUP) test
	cargo build --workspace --locked --bins --features e2e-tests/services --profile $(PROFILE)
	@BENCH_PROFILE=$(PROFILE) EDGE_MODULE_BIN=$(PROFILE_DIR)/edge-module $(PROFILE_DIR)/bench_edge

images: ## Both images from source (target/images), their sizes, and the scenario of the containers with them: PROFILE
	@$(SETUP) images test
	@PROFILE=$(PROFILE) deployment-manifests/local/images build
	cargo build --locked --workspace --bins --tests --features e2e-tests/services
	EDGE_MODULE_IMAGE=localhost/edge-module:latest CLOUD_AGGREGATOR_IMAGE=localhost/cloud-aggregator:latest \
	  cargo test --locked -p e2e-tests --features services --test scenarios -- containers::

image-arm64: ## Both images for arm64, compiled here and tried under emulation, TensorFlow Lite included: PROFILE
	@$(SETUP) image-arm64
	@PROFILE=$(PROFILE) deployment-manifests/local/images arm64

deb: ## The Debian package of the edge module, in target/deb
	@$(SETUP) deb
	@command -v cargo-deb >/dev/null || cargo install --locked --version 3.6.3 cargo-deb
	cargo build --locked --release -p edge-module
	deployment-manifests/systemd/debian/build

deb-try: ## Installs that package in a Debian with a running systemd (root): start, hang, wrong settings, upgrade, purge
	@$(SETUP) deb
	deployment-manifests/systemd/debian/try

readers: ## Every reader of the lake, Spark among them, at each stage of its life
	@$(SETUP) spark
	cargo build --workspace --locked --bins --tests --features e2e-tests/services
	READERS_SPARK=1 cargo test --locked -p e2e-tests --features services --test scenarios -- readers:: --nocapture

spark: ## The Spark job of deployment-manifests/cloud/databricks beside the aggregator: the same lake, killed, and handed over both ways
	@$(SETUP) spark
	cargo build --workspace --locked --bins --tests --features e2e-tests/services
	SPARK=1 cargo test --locked --workspace --features e2e-tests/services --test scenarios -- databricks:: --nocapture --test-threads 1
