# What a person does in this repository, by name. `make` alone lists it.
# Servers come from scripts/servers.sh; nothing here starts one that outlives the command.

SERVERS := scripts/servers.sh
ARGS ?=
FAULTS ?= 200

.DEFAULT_GOAL := help
.PHONY: help demo demo-mesh test check fix sim faults bench-failover bench-agent bench-router bench-mesh

help: ## list these targets
	@echo 'Antiphon: make TARGET'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'Further arguments go in ARGS, for example: make sim ARGS="--seeds 0..10000"'

demo: ## three PostgreSQL servers on this machine, replicated, with a failover to watch
	@$(SERVERS) toolchain ensure >/dev/null
	@echo 'Building antiphon (the first time takes some minutes) ...'
	@cargo build -p antiphon
	@cargo run -q -p antiphon -- demo $(ARGS)

demo-mesh: ## three leaders in three regions write the same rows at once, and are cut off from each other
	@$(SERVERS) toolchain ensure >/dev/null
	@echo 'Building antiphon (the first time takes some minutes) ...'
	@cargo build -p antiphon
	@cargo run -q -p antiphon -- demo mesh $(ARGS)

# Most tests wait for servers most of the time: more of them at once than there are cores are done sooner.
test: ## every test, against real PostgreSQL and etcd servers
	@$(SERVERS) toolchain ensure etcd >/dev/null
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(($$(nproc) * 3 / 2))} cargo test --workspace --no-fail-fast $(ARGS)

check: ## formatting, lints and the rules of the house; quick, starts no server
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test -q -p antiphon --test tidy
	@if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh; \
	else echo 'shellcheck is not installed: the scripts were not checked'; fi
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	else echo 'cargo-deny is not installed: the licences of dependencies were not checked'; fi

fix: ## put right what a machine can: formatting and the lints with a known cure
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

sim: ## simulate whole clusters, seed after seed; a failing seed is printed
	cargo sim $(ARGS)

faults: ## 200 random faults on real clusters in each mode, lost writes counted (hours; FAULTS=20 is shorter)
	@$(SERVERS) toolchain ensure etcd >/dev/null
	ANTIPHON_FAULTS=$(FAULTS) cargo test -p antiphon --test faults -- --nocapture --test-threads=1 $(ARGS)

bench-failover: ## how long writes stop at each kind of failure, beside Patroni (root; takes hours, ARGS="--runs 5 --peer-runs 2" is shorter)
	@$(SERVERS) toolchain etcd haproxy net >/dev/null
	cargo build --release -p antiphon -p antiphon-bench
	@postgresql=$$($(SERVERS) ensure) && patroni=$$($(SERVERS) patroni) && \
	cargo run --release -q -p antiphon-bench -- failover --postgresql "$$postgresql" --patroni "$$patroni" $(ARGS)

bench-agent: ## what the agent costs while idle and how fast its API answers, beside Patroni (root; 15 minutes)
	@$(SERVERS) toolchain etcd net ab >/dev/null
	cargo build --release -p antiphon -p antiphon-bench
	@postgresql=$$($(SERVERS) ensure) && patroni=$$($(SERVERS) patroni) && \
	cargo run --release -q -p antiphon-bench -- agent --postgresql "$$postgresql" --patroni "$$patroni" $(ARGS)

bench-router: ## what a query costs in the router, beside PgBouncer, HAProxy and Pgpool-II (root; 45 minutes)
	@$(SERVERS) toolchain net haproxy pgbouncer pgpool >/dev/null
	cargo build --release -p antiphon -p antiphon-bench
	@postgresql=$$($(SERVERS) ensure) && newest=$$($(SERVERS) pgbouncer-newest) && \
	cargo run --release -q -p antiphon-bench -- router --postgresql "$$postgresql" --pgbouncer-newest "$$newest" $(ARGS)

bench-mesh: ## how fast changes go from one leader to another, beside subscriptions and pglogical (root; an hour)
	@$(SERVERS) toolchain >/dev/null
	cargo build --release -p antiphon -p antiphon-bench
	@postgresql=$$($(SERVERS) ensure) && pglogical=$$($(SERVERS) pglogical || true) && \
	cargo run --release -q -p antiphon-bench -- mesh --postgresql "$$postgresql" \
	$${pglogical:+--pglogical "$$pglogical"} $(ARGS)
