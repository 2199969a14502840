# Everything runs in .venv, which the first target that needs it makes; nothing has to be installed before but Python.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder # a file's tests share what they set up; tests/conftest.py orders the files

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-zA-Z0-9_%-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with all that is needed (a few minutes once, nothing afterwards)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up $(VENV) (about 2 GB of packages, once) ..." >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

quickstart: $(STAMP)  ## The main job on a generated log, from log rows to a report (under 5 minutes on 2 cores)
	@$(BIN)/mtrec quickstart

test: $(STAMP)  ## The whole test suite
	@$(PYTEST)

check: $(STAMP)  ## Format, lint, types and unit tests, as in CI (4 minutes on 2 cores)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(PYTEST) -m "not distributed and not ray and not slow and not gpu"

format: $(STAMP)  ## Format and sort imports
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-%: $(STAMP)  ## Run a benchmark: make bench-packing, bench-stack, bench-peers, bench-search, bench-balancing, bench-id_tables, bench-prepare
	@$(BIN)/python benchmarks/$*.py

proof-%: $(STAMP)  ## Prove a method on logs with a planted answer (minutes each): make proof-NAME, NAME as in benchmarks/proofs
	@$(BIN)/python benchmarks/proofs/$*.py --json proof-$*.json

study-%: $(STAMP)  ## Train a study's variants and seeds and print its table: make study-movielens_a (hours)
	@$(BIN)/python benchmarks/study.py benchmarks/studies/$*.yaml

clean:  ## Remove what runs and tests left behind; the logs and .venv stay
	rm -rf runs prepared .pytest_cache .ruff_cache .mypy_cache .hypothesis build
