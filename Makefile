# Everything installs into .venv/ from the exact versions in constraints.txt. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all fault-test bench bench-row lint type ui table clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ #/' | awk -F' # ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv/ and install into it

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into .venv/ (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## prune the embedded model with three patterns on generated questions, print the table
	@$(BIN)/python -m runner -m model=tiny dataset=demo pattern=dense,4x1,2:4
	@$(BIN)/python -m results

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

test: $(STAMP)  ## the quick tests (10 minutes)
	@$(PYTEST) -m "not slow"

test-slow: $(STAMP)  ## the slow rest: faults, ranks, launchers, families, long grids (14 minutes)
	@$(PYTEST) -m slow

test-all: $(STAMP)  ## all tests (25 minutes)
	@$(PYTEST)

fault-test: $(STAMP)  ## kill a small run, damage its files, fill its disk, and start it again (40 minutes)
	@$(BIN)/python tests/faults/faults.py

bench: $(STAMP)  ## what the pruning engine costs, as ratios (10 minutes; needs 16 GB)
	@$(BIN)/python tests/benchmarks/bench_engine.py

bench-row: $(STAMP)  ## what a row costs beside a usual script, with PRUNE_DISTILL_HUB set (an hour and more)
	@$(BIN)/python tests/benchmarks/bench_row.py

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

type: $(STAMP)  ## pyright
	@$(BIN)/pyright

ui: $(STAMP)  ## the MLflow UI on http://127.0.0.1:5000
	@echo "With scores: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=results"
	@$(BIN)/mlflow ui --backend-store-uri $${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} --host 127.0.0.1

table: $(STAMP)  ## the results table
	@$(BIN)/python -m results

clean:  ## remove .venv/ and caches, not results
	@rm -rf .venv .pytest_cache .ruff_cache *.egg-info
