# `make help` lists what can be done. `make demo` and `make test` set up what they need, once.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types bench chaos meta-train science docs cluster-files clean

# The first of these that is new enough; a name may exist and still not run (pyenv).
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := .venv/.ready
DATA := .venv/.data

# Two threads on small tensors are slower than one.
export OMP_NUM_THREADS ?= 1

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) $(DATA)  ## make .venv, install everything, fetch the demo's data (once; needs the network)

demo: setup  ## run the demo: a stream that shifts, and a model that grows and shrinks its heads
	@$(BIN)/planaria run jobs/fashion_shift.yaml

test: setup  ## run the tests, except the slow ones, in two processes
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: setup  ## run the slow tests, a real Ray cluster among them
	@$(BIN)/python -m pytest -q -m slow

lint: $(READY)  ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)  ## check types
	@$(BIN)/mypy

bench: setup  ## measure speed and memory; prints a table
	@$(BIN)/python -m benchmarks.speed

chaos: setup  ## do to runs on three virtual hosts what clusters do (root only; 1 to 2 hours; SEEDS=1: 10 minutes)
	@$(BIN)/python -m benchmarks.chaos $(if $(SEEDS),--seeds $(SEEDS))

meta-train: setup  ## meta-train the controller's value from nothing (about half an hour on 2 cores)
	@$(BIN)/planaria meta-train jobs/meta_train.yaml

science: meta-train  ## what the learned controller is worth, on kinds of stream it has never seen (about an hour more)
	@$(BIN)/python -m benchmarks.controller.compare
	@$(BIN)/python -m benchmarks.controller.regret
	@$(BIN)/python -m benchmarks.controller.ablations
	@$(BIN)/python -m benchmarks.recurring
	@$(BIN)/python -m benchmarks.controller.page

docs: $(READY)  ## write docs/jobs.md anew from the settings
	@$(BIN)/python docs/write_jobs_page.py

cluster-files: $(READY)  ## write cluster.yaml, cluster.local.yaml and kuberay/ anew from cluster/
	@$(BIN)/python cluster/write_files.py

clean:  ## remove caches and builds; keep .venv, data and runs
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis platform/*.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# The order matters. torch first and by its exact version; the lock; then what builds learn2learn, whose archive holds
# C files of an old Cython that Python 3.11 refuses: the option makes its setup write them anew from their sources.
$(READY): pyproject.toml requirements.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "planaria needs Python 3.11 or newer, and found none: install it, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(f"planaria needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv with $(PYTHON) (once, some minutes, needs the network) ..."
	@"$(PYTHON)" -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: python3-venv)" >&2; exit 2; }
	@$(PIP) torch==2.13.0
	@$(PIP) -r requirements.lock
	@$(PIP) "cython<3.1" "setuptools>=77,<81" wheel
	@$(PIP) --no-deps --no-build-isolation --use-pep517 --config-settings="--global-option=build_ext" learn2learn==0.2.0
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DATA): $(READY)
	@$(BIN)/planaria fetch fashion_mnist weather
	@touch $@
