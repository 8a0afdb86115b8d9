# All tasks of the project. `make help` lists the targets.
# Variables: NETWEFT_CACHE, KUBERNETES_VERSION (1.34 to 1.37), NODE_IMAGE, MODE, POD_INTERFACE, FAMILY, RP_FILTER, ROUTERS, KEEP, OTHER_KERNEL, CHECKS, SCENARIO, NODES, SEED.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODE ?=
SCENARIO ?= connectivity
POD_INTERFACE ?= routed
FAMILY ?= 4
RP_FILTER ?= 0,1,2
ROUTERS ?= frr
KEEP ?=
OTHER_KERNEL ?=
NODES ?= 5000
SEED ?= 1

comma := ,
env := hack/env.sh
# Every target first lists everything that the machine lacks (hack/requirements).
require := hack/require.sh
build = $(env) cargo build --release --locked --workspace --all-targets

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## create a kind cluster with netweft, and print its ping matrix
	@hack/demo.sh

.PHONY: lab
lab: ## the same on nodes made of network namespaces, in seconds: SCENARIO=connectivity|fabric|bgp-…|scale-…|growth|mode-changes|drift|abuse|agent-failures|reconfiguration MODE=vxlan|ipip|udp|host-gw|…-cross-subnet|underlay|all ROUTERS=frr|bird|gobgp POD_INTERFACE=routed FAMILY=4|6|46 RP_FILTER=0,1,2 ATTACK_SECONDS=20 KEEP=1 OTHER_KERNEL=1
	@$(require) lab $(addprefix lab-,$(subst $(comma), ,$(SCENARIO) $(MODE))) $(if $(OTHER_KERNEL),other-kernel)
	@$(build)
	@OTHER_KERNEL=$(OTHER_KERNEL) $(env) hack/lab.sh $(SCENARIO) $(MODE) -- --pod-interface $(POD_INTERFACE) --family $(FAMILY) \
	  --rp-filter $(RP_FILTER) --routers $(ROUTERS) $(if $(ATTACK_SECONDS),--seconds $(ATTACK_SECONDS)) $(if $(KEEP),--keep)

.PHONY: migrate
migrate: ## change a lab from every mode to every other under load, and print the cost of each change: FAMILY=4|6|46 POD_INTERFACE=routed RP_FILTER=1
	@$(require) migrate
	@$(build)
	@$(env) hack/migrate.sh --family $(FAMILY) --pod-interface $(POD_INTERFACE) --rp-filter $(RP_FILTER)

.PHONY: e2e
e2e: ## run the suite on a kind cluster (created if missing, removed afterwards): MODE=vxlan|ipip|udp|host-gw|vxlan-cross-subnet|underlay POD_INTERFACE=routed|bridge FAMILY=4|6|46 CHECKS=basic|life|full
	@MODE=$(MODE) POD_INTERFACE=$(POD_INTERFACE) FAMILY=$(FAMILY) tests/run.sh kind

.PHONY: build
build: ## build the static release binaries and the tests
	@$(require) build
	@$(build)

.PHONY: test
test: ## run the first tier of tests with all set-up; what CI runs
	@tests/run.sh test

.PHONY: test-full
test-full: ## run the first tier, then all other families, modes, faults, upgrades and the oldest Kubernetes: 2.5 hours
	@tests/run.sh full

.PHONY: soak
soak: ## repeat the lab for 20 minutes
	@tests/run.sh soak

.PHONY: bench
bench: ## compare the plugin, the udp tunnel and BGP of many nodes with others, and measure the repair of drift: tables, and bench/results*.json
	@$(require) bench
	@$(build)
	@$(env) netweft-bench plugin --plugin "$$($(env) printenv BIN_DIR)" --reference "$$(e2e/cluster/build-tools.sh cni)" --json bench/results.json
	@$(env) netweft-bench tunnel --relay "$$($(env) printenv BIN_DIR)/netweft-udp-relay" --flannel "$$(e2e/cluster/build-tools.sh flannel)/flannel-udp" --json bench/results-tunnel.json
	@$(env) netweft-bench bgp --binaries "$$($(env) printenv BIN_DIR)" --bird "$$(e2e/cluster/bird.sh)" --json bench/results-bgp.json
	@$(env) netweft-bench filter --agent "$$($(env) printenv BIN_DIR)/netweft-agent" --json bench/results-filter.json
	@$(env) netweft-bench drift --agent "$$($(env) printenv BIN_DIR)/netweft-agent" --json bench/results-drift.json

.PHONY: sim
sim: ## run two operators with simulated Nodes at a real API server while leaders are killed: NODES=5000 SEED=1; a table, and bench/results-sim.json
	@$(require) sim
	@$(build)
	@hack/sim.sh $(NODES) $(SEED)

.PHONY: fresh
fresh: ## run the first tier with empty caches and only declared commands on PATH
	@tests/fresh.sh

.PHONY: fmt
fmt: ## format the Rust code
	@$(require) fmt
	@$(env) cargo fmt --all

.PHONY: lint
lint: ## check formatting, clippy, dependencies, generated files, shell scripts, chart, Markdown and terminology
	@hack/lint.sh

.PHONY: generate
generate: ## write the generated files: the chart's CRDs
	@$(require) generate
	@$(build)
	@$(env) crdgen charts/netweft/crds

.PHONY: snapshots
snapshots: ## write docs/kernel: the kernel state of a node in each mode
	@$(require) snapshots
	@$(build)
	@$(env) hack/snapshots.sh

.PHONY: down
down: ## remove the cluster and the lab; caches stay
	@hack/down.sh

.PHONY: clean
clean: down ## remove everything, the caches too
	@rm -rf "$${NETWEFT_CACHE:-$$HOME/.cache/netweft}" target
