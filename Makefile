# make demo | test | lint | fast ...: each sets up what it needs in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Set THREADS to use fewer cores than the machine has.
THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo demo-fast test test-slow lint bench setup clean

setup: $(VENV)/.installed

# torch goes first: with it in place nothing else resolves another one. No build isolation, for the same reason.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools wheel torch
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

demo: setup
	OMP_NUM_THREADS=$(THREADS) $(BIN)/tide demo --out runs/demo

demo-fast: setup
	OMP_NUM_THREADS=$(THREADS) $(BIN)/tide demo --fast --out runs/demo-fast

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
