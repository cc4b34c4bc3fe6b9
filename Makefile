# make help   lists the targets
# Variables: PYTHON (default python3), TORCH_INDEX (optional, where torch itself comes from),
# NB (notebooks for make refresh), LAB (options for JupyterLab, such as LAB=--no-browser).
# On Linux without a GPU, the small CPU build:
#   make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
NB ?=
LAB ?=

BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup lab test lint units nbtest refresh exercises bench ledger mutants clean

help:
	@echo "make lab        set up .venv and open the notebooks in JupyterLab"
	@echo "make setup      only set up .venv"
	@echo "make test       set up what the tests need, then lint, unit tests and notebooks"
	@echo "make lint       style, layers, stored notebooks"
	@echo "make units      unit tests only (fast)"
	@echo "make nbtest     run every notebook and compare it with its stored outputs"
	@echo "make refresh    run the notebooks and store their outputs (NB=path for some of them)"
	@echo "make exercises  generate exercises and solutions from the masters"
	@echo "make ledger     measure every system of the course (writes data/results/ledger.json)"
	@echo "make mutants    break the library in many ways: a test must catch each"
	@echo "make bench      measure quality against seconds, and speed against diffusers (writes data/results/benchmark*.json)"
	@echo "make clean      remove caches and build files (.venv stays; remove it with: rm -r .venv)"
	@echo ""
	@echo "Linux without a GPU: add TORCH_INDEX=https://download.pytorch.org/whl/cpu to the first make"
	@echo "for a download of 0.2 GB in place of 3 GB. Another Python: PYTHON=python3.12"

# --- environment ------------------------------------------------------------------------------

.venv/.stamp-venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found. Debian or Ubuntu: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tinydiff needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 && echo "using the .venv that is here" || { echo "$(PYTHON) -m venv --clear .venv"; $(PYTHON) -m venv --clear .venv; }
	@touch $@

# torch first, so that the other packages find it and fetch no second build of it
.venv/.stamp-torch: .venv/.stamp-venv constraints.txt
	$(BIN)/python -m pip install -c constraints.txt $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

.venv/.stamp-notebook: .venv/.stamp-torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e ".[notebook]"
	@touch $@

.venv/.stamp-test: .venv/.stamp-torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	@touch $@

setup: .venv/.stamp-notebook

lab: setup
	cd notebooks && ../$(BIN)/python -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

# --- tests ------------------------------------------------------------------------------------

test:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory units
	@$(MAKE) --no-print-directory nbtest

lint: .venv/.stamp-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

units: .venv/.stamp-test
	$(BIN)/python -m pytest -p no:nbval -q

nbtest: .venv/.stamp-test
	$(BIN)/python -m pytest --nbval -q notebooks

# --- authors' tools ---------------------------------------------------------------------------

refresh: .venv/.stamp-test
	$(BIN)/python tools/refresh.py $(NB)

exercises: .venv/.stamp-test
	$(BIN)/python tools/exercises.py

bench: .venv/.stamp-test
	$(BIN)/python tools/bench.py
	$(BIN)/python tools/bench_images.py

ledger: .venv/.stamp-test
	$(BIN)/python -m tinydiff.recipes.ledger

mutants: .venv/.stamp-test
	$(BIN)/python tools/mutants.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
