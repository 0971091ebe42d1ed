# Pagewire. `make help` lists the targets; variables can be set on the command line: make run PORT=50052

PYTHON ?= python3
# What to install as torch, and from which package index (default: pip's own). For a build without CUDA on a machine
# without a GPU, name PyTorch's CPU index: make run TORCH_INDEX=URL
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
MODEL ?= demo
PORT ?= 50051
PROMPT ?= What is the capital of France?
ONCE ?=
# Tests wait more than they compute: several at a time, and few enough for small machines.
PYTEST_ARGS ?=
PYTEST_PROCESSES ?= -n logical --maxprocesses 4 --dist worksteal
CHAOS_ARGS ?=
HOSTILE_ARGS ?=
CLUSTER_ARGS ?=
BENCH_ARGS ?= --concurrency 8 --input-len 128 --output-len 128

VENV := .venv
BIN := $(VENV)/bin
PROTO_BIN := .venv-proto/bin
PROTOS := pagewire/v1/inference.proto pagewire/v1/generate.proto pagewire/open_inference/grpc_service.proto
SERVICE_PROTOS := pagewire/v1/inference.proto

# The prompt is taken as it was given, with every $, and reaches the shell through the environment, with any quotes.
override PROMPT := $(value PROMPT)
export PROMPT

.DEFAULT_GOAL := help
.PHONY: help run test chaos cluster hostile lint format proto bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Serve the demo model and answer PROMPT="…"; ONCE=1 ends then; also MODEL=, PORT=
	@$(BIN)/pagewire serve "$(MODEL)" --listen "127.0.0.1:$(PORT)" --ask "$$PROMPT" $(if $(ONCE),--once)

test: $(VENV)/.test ## Run the tests; PYTEST_ARGS="-k name"
	$(BIN)/python -m pytest $(PYTEST_PROCESSES) $(PYTEST_ARGS)

chaos: $(VENV)/.test ## Kill processes under load and check every stream; CHAOS_ARGS="--kills 100 --victims worker"
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

cluster: $(VENV)/.test ## Run the chart's pods here as root and restart, kill, cut them off; CLUSTER_ARGS="--streams 50"
	$(BIN)/python -m tests.cluster $(CLUSTER_ARGS)

hostile: $(VENV)/.test ## Attack a service with 100,000 messages and bad connections; HOSTILE_ARGS="--cases 10000"
	$(BIN)/python -m tests.hostile $(HOSTILE_ARGS)

lint: $(VENV)/.lint .venv-proto/.installed ## Check style, types, protos and generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate,$$fresh) && \
	for file in $$(cd "$$fresh" && find . -type f); do diff -u "proto/$$file" "$$fresh/$$file" \
	|| { echo "generated code is out of date: run make proto"; exit 1; }; done

format: $(VENV)/.lint ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: .venv-proto/.installed ## Rebuild the generated code from the .proto files
	@$(call generate,proto)

bench: $(VENV)/.run ## Measure the whole stack on this machine; MODEL=, BENCH_ARGS=
	$(BIN)/pagewire bench serve --local "$(MODEL)" $(BENCH_ARGS)

clean: ## Remove environments and caches; the demo model's cache stays
	rm -rf $(VENV) .venv-proto .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is rebuilt on top of itself when pyproject.toml changes.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pagewire needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	$(BIN)/python -m pip install --editable '.[all]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python -m pip install --editable '.[lint]'
	@touch $@

# The code generators need an older protobuf than the rest may have, so they live apart.
.venv-proto/.installed:
	$(PYTHON) -m venv .venv-proto
	$(PROTO_BIN)/python -m pip install grpcio-tools==1.76.0 mypy-protobuf==3.6.0 'setuptools<81'
	@touch $@

define generate
$(PROTO_BIN)/python -m grpc_tools.protoc -I proto \
	--plugin=protoc-gen-mypy=$(PROTO_BIN)/protoc-gen-mypy --python_out=$(1) --mypy_out=$(1) $(PROTOS) \
&& $(PROTO_BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy_grpc=$(PROTO_BIN)/protoc-gen-mypy_grpc \
	--grpc_python_out=$(1) --mypy_grpc_out=$(1) $(SERVICE_PROTOS)
endef
