# Needs git, make and Python >= 3.11 with pip; everything else is fetched into this folder.
SHELL := /bin/bash
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
BIN := .venv/bin

# OpenMP threads that spin make two busy processes 20 times slower. The package adds a short spin.
export OMP_WAIT_POLICY := PASSIVE
export PYTHONWARNINGS :=

.PHONY: quickstart test slow test-notebooks check clean

quickstart: .venv/ready
	$(BIN)/lightning fit --config quickstart
	$(BIN)/lightning sweep run overlock_components --profile quickstart --workers 2

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

slow: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

test-notebooks: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=600 notebooks

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.tools/bin/uv:
	$(PYTHON) -m pip install --quiet --target .tools uv

.venv/ready: pyproject.toml $(filter .tools/%,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python --editable . --group dev --group notebooks
	touch $@

clean:
	rm -rf .venv .tools build dist .pytest_cache .mypy_cache .ruff_cache
