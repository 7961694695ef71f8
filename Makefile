# `make` lists the targets. GNU make 3.81 (macOS) is enough.

PYTHON ?= python3
PYTEST_ARGS ?=
TESTS_AT_ONCE ?= 3
BENCH_ARGS ?=
CHAOS_ARGS ?= --faults 20
SHORT_CHAOS_ARGS ?= # --allow-missing: skip the faults that this machine cannot inject
FUZZ_SECONDS ?= 60
FUZZ_ARGS ?=
DEMO_SET ?= --set env.SAMPLES=300 --set data.at_least=300

# Tests start orch some thousand times; without bytecode each start compiles all of it again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt
# The vermin check reads what runs on the box, which may have nothing newer than Python 3.8.
VERMIN := $(BIN)/vermin --quiet --no-tips --target=3.8- --violations
# In this order the cheapest tests speak first.
FAST_TESTS := tests/test_architecture.py tests/test_tooling.py tests/test_bench.py tests/unit tests/contract
# These wait more than they work, on processes of their own, so several go on at once: a file at a time each.
# The files that take longest come first, so that no process is alone with one at the end.
SLOW_TESTS := tests/integration/test_scripts.py tests/faults tests/integration tests/workers tests/hostile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: help env demo test check format format-check lint types py38 packages chaos fuzz constraints clean
.PHONY: bench bench-supervisor bench-train

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

# --- environment: a stamp for each layer, so that a second run has nothing to do -------------------------

env: .venv/.base ## the command line alone: .venv/bin/orch

.venv/.python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version 2>&1) is too old: orch needs Python 3.11 or newer. Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: apt install python3-venv" >&2; exit 1; }
	@echo "==> environment in .venv ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.base: .venv/.python pyproject.toml constraints.txt
	@echo "==> installing orch"
	@$(INSTALL) --editable .
	@touch $@

# torch and torchvision have a step of their own: they are by far the largest, and fail or succeed first.
.venv/.torch: .venv/.python constraints.txt
	@echo "==> installing torch and torchvision (large: minutes on a slow line)"
	@$(INSTALL) $$(grep -E '^(torch|torchvision)==' constraints.txt)
	@touch $@

.venv/.workers: .venv/.torch pyproject.toml constraints.txt
	@echo "==> installing orch and what the workers need"
	@$(INSTALL) --editable '.[workers]'
	@touch $@

.venv/.dev: .venv/.workers pyproject.toml constraints.txt
	@echo "==> installing the checkers and the test runner"
	@$(INSTALL) --editable '.[dev,workers]'
	@touch $@

packages:
	@.ci/packages.sh

# --- running -------------------------------------------------------------------------------------------

demo: .venv/.workers ## train both workers on this machine on a small data set
	@status=0; \
	$(BIN)/orch launch worker1 worker2 --wait $(DEMO_SET) || status=$$?; \
	$(BIN)/orch sync || { [ $$status -ne 0 ] || status=1; }; \
	$(BIN)/orch status || { [ $$status -ne 0 ] || status=1; }; \
	exit $$status

bench: .venv/.dev ## how long each command takes, beside ssh and rsync by hand
	@$(BIN)/python -m bench $(BENCH_ARGS)

bench-train: .venv/.dev ## how long 30 epochs take, beside the way without caches
	@$(BIN)/python -m bench.train $(BENCH_ARGS)

bench-supervisor: .venv/.dev ## what a supervisor costs: CPU, memory, start-up
	@$(BIN)/python -m bench.supervisor

chaos: packages .venv/.dev ## random faults against real runs: make chaos CHAOS_ARGS="--faults 200 --seeds 5"
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

fuzz: .venv/.dev ## every parser of foreign bytes, on anything: make fuzz FUZZ_SECONDS=3600 FUZZ_ARGS="--seed 7"
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

# --- checks --------------------------------------------------------------------------------------------

# A slow test that fails while others run beside it is run once more alone, which the output shows: a machine under load
# fails no build, a fault does.
test: packages check-static ## everything: format, lint, types, Python 3.8, every test
	@echo "==> tests"
	@$(BIN)/python -m coverage run -m pytest -x $(PYTEST_ARGS) $(FAST_TESTS)
	@$(BIN)/python -m coverage report $(if $(PYTEST_ARGS),--fail-under=0)
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) $(SLOW_TESTS) || { \
		echo "==> once more, one at a time: the tests that failed while others ran beside them"; \
		$(BIN)/python -m pytest -x --last-failed --last-failed-no-failures none $(PYTEST_ARGS) $(SLOW_TESTS); }
	@echo "==> fuzzing"
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)
	@echo "==> a short chaos run"
	@$(BIN)/python -m tests.chaos --faults 6 --at-once 2 --out build/chaos-short.json $(SHORT_CHAOS_ARGS)

check: check-static ## the fast part: no training
	@echo "==> fast tests"
	@$(BIN)/python -m pytest -q -m "not slow" $(PYTEST_ARGS) $(FAST_TESTS)

.PHONY: check-static
check-static: format-check lint types py38

format: .venv/.dev ## rewrite the sources as the checks want them
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

format-check: .venv/.dev
	@echo "==> format"
	@$(BIN)/ruff format --quiet --check --diff .

lint: .venv/.dev
	@echo "==> lint"
	@$(BIN)/ruff check --quiet .

types: .venv/.dev
	@echo "==> types"
	@$(BIN)/mypy --no-error-summary

py38: .venv/.dev
	@echo "==> remote/ is Python 3.8"
	@$(VERMIN) remote

# --- upkeep --------------------------------------------------------------------------------------------

constraints: .venv/.dev ## pin what .venv holds; to move a pin: .venv/bin/pip install -U NAME, then this
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | LC_ALL=C sort -f; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean: ## remove the environment and every cache (runs and results stay)
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
