# Needs git, make and Python >= 3.11 with pip; everything else is fetched into this folder.
SHELL := /bin/bash
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
BIN := .venv/bin
# `make gpu-check` runs in the environment that is there.
CHECK_PYTHON = $(shell test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))
# The Python of the machine that `make gpu-wheels` is for, and what it lacks.
GPU_PYTHON_VERSION ?= 3.12
DOWNLOAD = $(PYTHON) -m pip download --quiet --only-binary=:all: --dest build/wheels --python-version $(GPU_PYTHON_VERSION) --implementation cp --platform manylinux2014_x86_64 $(foreach glibc,2_34 2_28 2_27 2_24 2_17,--platform manylinux_$(glibc)_x86_64)
GPU_WHEELS ?= jsonargparse typeshed-client importlib-resources docstring-parser pycocotools optuna alembic colorlog mako sqlalchemy greenlet faster-coco-eval

# OpenMP threads that spin make two busy processes 20 times slower. The package adds a short spin.
export OMP_WAIT_POLICY := PASSIVE
export PYTHONWARNINGS :=

.PHONY: quickstart test slow long test-notebooks check docs oldest wheel-check contract gpu-check gpu-wheels coverage clean

quickstart: .venv/ready
	$(BIN)/lightning fit --config quickstart
	$(BIN)/lightning sweep run overlock_components --profile quickstart --workers 2

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not long" --durations=15

slow: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow --durations=15

# Kills at random moments, property tests with hundreds of examples, every architecture of timm.
long: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m long --durations=15

test-notebooks: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=900 --timeout=3600 notebooks

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

# The oldest releases that pyproject.toml allows, in an environment of their own.
oldest: .venv-oldest/ready
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 -m "not slow and not long"

# The wheel without its checkout: what somebody gets who installs it.
wheel-check: .venv/ready
	rm -rf build/wheel && $(UV) build --quiet --wheel --out-dir build/wheel --python $(BIN)/python .
	$(UV) venv --quiet --clear --python $(PYTHON) build/wheel/venv
	$(UV) pip install --quiet --python build/wheel/venv/bin/python build/wheel/*.whl
	tests/wheel_check.sh $(CURDIR)/build/wheel/venv/bin

# timm's own tests of the installed timm, for the models of this package; and the backbones as
# encoders of segmentation_models_pytorch and torchgeo, in an environment of their own.
contract: build/contract/ready .venv-contract/ready
	cd build/contract && OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tests/contract $(CURDIR)/$(BIN)/python -m pytest -q -n 2 -p register_backbones tests/test_models.py
	OMP_NUM_THREADS=1 .venv-contract/bin/python -m pytest -q -n 2 -c /dev/null --rootdir tests/contract --confcutdir tests/contract tests/contract/other_packages.py

build/contract/ready: .venv/ready
	rm -rf build/contract && mkdir -p build/contract
	$(PYTHON) -m pip download --quiet --no-deps --no-binary timm --dest build/contract "timm==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("timm"))')"
	tar --extract --gzip --strip-components 1 --directory build/contract --file build/contract/timm-*.tar.gz
	rm -rf build/contract/timm
	touch $@

# requests is imported by torchgeo, which does not ask for it.
.venv-contract/ready: pyproject.toml $(filter .tools/%,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-contract
	$(UV) pip install --quiet --python .venv-contract/bin/python --editable . segmentation-models-pytorch torchgeo requests pytest pytest-xdist
	touch $@

# On a machine with a GPU, at most eight minutes, without a network: build/gpu_check/report.md. Needs
# torch, triton, timm, lightning and pytest; `make gpu-wheels` elsewhere, and build/wheels carried
# along, brings what few machines have.
gpu-check:
	mkdir -p build/gpu_site
	if [ ! -x $(BIN)/python ] && [ -d build/wheels ]; then $(CHECK_PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu_site build/wheels/*.whl; fi
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/gpu_site$${PYTHONPATH:+:$$PYTHONPATH} $(CHECK_PYTHON) tests/gpu_check.py

gpu-wheels:
	rm -rf build/wheels
	$(DOWNLOAD) --no-deps $(GPU_WHEELS)
	$(DOWNLOAD) pydantic

coverage: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not long" --cov=lightning_overlock --cov-report=term-missing:skip-covered

.tools/bin/uv:
	$(PYTHON) -m pip install --quiet --target .tools uv

.venv/ready: pyproject.toml $(filter .tools/%,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python --editable . --group dev --group notebooks
	touch $@

.venv/docs: .venv/ready
	$(UV) pip install --quiet --python $(BIN)/python --group docs
	touch $@

.venv-oldest/ready: pyproject.toml $(filter .tools/%,$(UV))
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-oldest
	$(UV) pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable . --group dev --group notebooks
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-contract .tools build dist .pytest_cache .mypy_cache .ruff_cache
