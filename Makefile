# Everything runs in .venv, which the first target builds. `make PY=/path/to/python test` uses that interpreter as it is.
SHELL := /bin/bash
VENV ?= .venv
EXTRAS ?= dev
OUT ?= out
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
endif
RUN = $(PY) -m steerdiff
# The tests are many and small: two processes of one thread each beat one process of two threads. Each takes a half in
# order, so that what a module shares is made once, and the one that is done first helps with the rest.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest
JOBS ?= 2

.PHONY: help install test test-weights demo lint format type types bench docs cuda-check gpu assets golden clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\): .*##  *\(.*\)/\1|\2/p; s/^\([a-z-]*\):  *##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | sort -u | \
		awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(READY)  ## make .venv and install steerdiff into it, editable

$(VENV)/.installed: setup.py pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "steerdiff needs Python 3.10 or later and found none; install it, or say where it is: make PYTHON=/path/to/python" >&2; exit 2; fi
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(VENV)/bin/python -m ensurepip --upgrade
	@echo "Installing steerdiff and its dependencies into $(VENV) (PyTorch is large: this takes minutes, once)"
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)/bin/python -m pip install -q -e '.[$(EXTRAS)]'
	@touch $@

test: $(READY)  ## run all tests
	$(PYTEST) -q -n $(JOBS) --dist worksteal

test-weights: $(READY)  ## checks of the published weights in the folder STEERDIFF_WEIGHTS; says which are absent
	@test -d "$(STEERDIFF_WEIGHTS)" || { \
		echo "set STEERDIFF_WEIGHTS to a folder with published weights; docs/weights.md says how it is searched" >&2; exit 2; }
	$(PYTEST) -q tests/real_weights

demo: $(READY)  ## draw and edit images with every method: out/demo/index.html
	$(RUN) demo --out $(OUT)/demo

lint: $(READY)  ## ruff, without changing anything
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

format: $(READY)  ## ruff, changing files
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

type: $(READY)  ## mypy --strict
	$(PY) -m mypy

types: type

bench: $(READY)  ## time the parts, beside diffusers where the bench extra is installed: out/bench.json
	$(RUN) bench --out $(OUT)/bench.json

docs: $(READY)  ## the documentation as a site: out/docs
	$(PY) -m pip install -q -e '.[docs]'
	$(PY) -m mkdocs build --quiet --strict --site-dir $(OUT)/docs

cuda-check:  ## compile the CUDA kernels for every architecture, no GPU needed; fails on spills, skips without nvcc
	$(or $(PYTHON),python3) scripts/cuda_check.py

gpu: $(READY)  ## gpu tests, bench and a short training run, on a machine with a CUDA device
	PY="$(PY)" OUT="$(OUT)/gpu" bash scripts/gpu.sh

assets: $(READY)  ## remake everything that depends on the base weights, in order, and record the hashes
	$(PY) -m steerdiff.scripts.assets $(if $(BASE),--base $(BASE))

golden: $(READY)  ## only the tests against the golden files (STEERDIFF_GOLDEN names another folder)
	$(PYTEST) -q -k golden

clean:  ## remove what make made, .venv included
	rm -rf $(VENV) out build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
