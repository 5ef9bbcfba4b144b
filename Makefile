# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and are safe to repeat.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
WORKERS ?= 2
# A step of a small model on the CPU is mostly fresh memory: with large pages it takes two thirds of the time (docs/decisions.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help install install-dev demo test test-all lint clean

help:
	@echo "make demo      install, then both arms of the main job, and their report in $(OUT)"
	@echo "make test      install with test tools, then the quick tests (< 12 minutes on 2 cores)"
	@echo "make test-all  the slow tests too"
	@echo "make lint      ruff, and shellcheck for tpu_scripts/"

# The stamps make a repeated call free and a changed setup.py an upgrade.
$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlaif_jax needs Python >= 3.11; call make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/rlaif run configs/greetings_demo.py --out $(OUT)
	@echo "Report: $(OUT)/report/report.html  (figures for scripts: $(OUT)/report/report.json)"

test: install-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: install-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'slow or not slow'

lint: install-dev
	$(BIN)/ruff check rlaif_jax configs tests benchmarks tpu_scripts setup.py
	$(BIN)/shellcheck tpu_scripts/*.sh

clean:
	rm -rf $(VENV) build *.egg-info
