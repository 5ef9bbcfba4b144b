# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and are safe to repeat.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
WORKERS ?= 2
# A step of a small model on the CPU is mostly fresh memory. With this malloc keeps what it has: never slower (docs/decisions.md).
export GLIBC_TUNABLES ?= glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1

# Tested versions, for a Python that has a file of them; for others pip takes the newest that setup.py allows.
FILE_OF_PYTHON = import sys; print("constraints/py%d%d.txt" % sys.version_info[:2])
CONSTRAINTS = $(wildcard $(shell $(BIN)/python -c '$(FILE_OF_PYTHON)'))
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %)

# The inner loop: the numbers of losses, sampling, the model, updates and RL. The first run compiles, later ones read .pytest_cache.
CORE := tests/config tests/test_house.py tests/test_public_face.py tests/test_packaging.py tests/algorithms tests/sampling tests/models/test_transformer_reference.py \
	tests/trainers/test_update.py tests/trainers/test_rl.py

.PHONY: help install install-dev demo check test test-all lint types clean

help:
	@echo "make demo      install, then both arms of the main job, and their report in $(OUT)"
	@echo "make check     lint, types and the tests of the core (2 minutes on 2 cores, the first time 3)"
	@echo "make test      install with test tools, then the quick tests (about 10 minutes on 2 cores)"
	@echo "make test-all  the slow tests too"
	@echo "make lint      ruff, and shellcheck for tpu_scripts/"
	@echo "make types     mypy, on the public surface (pyproject.toml lists it)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlaif_jax needs Python >= 3.11; call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# The stamps make a repeated call free and a changed setup.py an upgrade.
$(VENV)/.installed: $(BIN)/python setup.py pyproject.toml $(wildcard constraints/*.txt)
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/rlaif run configs/greetings_demo.py --out $(OUT)
	@echo "Report: $(OUT)/report/report.html  (figures for scripts: $(OUT)/report/report.json)"

check: lint types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(CORE)

test: install-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: install-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'slow or not slow'

lint: install-dev
	$(BIN)/ruff check rlaif_jax configs tests benchmarks constraints tpu_scripts setup.py
	$(BIN)/shellcheck tpu_scripts/*.sh

types: install-dev
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info
