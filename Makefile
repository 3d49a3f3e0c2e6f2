# The loop: every target sets up its own environment in .venv from a bare checkout.
#
#   make quickstart   simulate data, train, evaluate, on the CPU of this machine
#   make test         the whole test suite
#   make lint         ruff, ruff format, mypy --strict
#   make venv         only the environment
#   make format       let ruff fix what it can
#   make docs         write the reference pages, and build docs/ as a site in site/
#   make mutants      change the code in one place at a time and count what the tests notice: hours
#   make lock         write the hashes of what is installed (requirements/*.lock), from PyPI
#
# Another interpreter: make venv PYTHON=/path/to/python3.12
# One module's mutants: make mutants MUTANTS_OF=models/losses   (benchmarks/mutants.toml has the table)
# Other mutants:       make mutants MUTANTS_SEED=1 MUTANTS_SAMPLE=6
# Some tests only:     make test PYTEST_ARGS="tests/models -k poseidon"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3
PYTHON_IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CODE := src tests benchmarks examples requirements docs/hooks.py
PYTEST_ARGS ?=
# Tests of Ray and Slurm wait most of the time, and must not meet each other: Slurm's runs end every
# Ray of the machine. The others fill that time.
USUAL := not matrix and not targets
# As much as makes both end at about the same time.
AFTER_RAY := tests/models tests/platform tests/cli tests/evaluation tests/submission

.PHONY: help quickstart test lint venv format docs mutants lock

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

venv: $(STAMP)

LOCKS := requirements
INSTALL := $(BIN)/python -m pip install --quiet --no-deps
# pip takes no file but those whose sha256 is in the lock, whatever index the machine asks.
LOCKED := $(INSTALL) --require-hashes

# torch for the CPU where the machine's index has it, which saves gigabytes; else PyPI's, with CUDA.
# What has no wheel is built with setuptools of the lock, not with one that the index chooses.
$(STAMP): pyproject.toml constraints.txt $(wildcard requirements/*.lock)
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: no '$(PYTHON)' on the PATH. Pelagos needs Python 3.11 or newer:" \
	       "make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c '$(PYTHON_IS_NEW_ENOUGH)' || { \
	  echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Pelagos needs Python 3.11 or newer:" \
	       "make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(LOCKED) --only-binary :all: --requirement $(LOCKS)/wheels.lock
	$(LOCKED) --only-binary :all: --requirement $(LOCKS)/torch-cpu.lock 2>/dev/null || { \
	  echo "no torch for the CPU in this machine's package index: taking PyPI's"; \
	  $(LOCKED) --only-binary :all: --requirement $(LOCKS)/torch.lock; }
	$(LOCKED) --no-build-isolation --requirement $(LOCKS)/sources.lock
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

quickstart: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart.sh

# One thread per process: the suite starts many processes, and sums keep one order.
test: export OMP_NUM_THREADS ?= 1
# Ray gives its workers way to everything else of the machine; here that is other tests.
test: export RAY_worker_niceness ?= 0
test: $(STAMP)
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@nice -n 10 $(BIN)/python -m pytest -m "not ray and $(USUAL)" \
	    $(addprefix --ignore=,$(AFTER_RAY)) > $(VENV)/beside.log 2>&1 & \
	beside=$$!; status=0; \
	$(BIN)/python -m pytest tests -m "ray and $(USUAL)" || status=$$?; \
	$(BIN)/python -m pytest -m "not ray and $(USUAL)" $(AFTER_RAY) || status=$$?; \
	echo "== waiting for the tests that run beside these: $(VENV)/beside.log"; \
	wait $$beside || status=$$?; cat $(VENV)/beside.log; exit $$status
endif

lint: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# Two pages are written from the code. Then broken links and unresolved references are errors.
docs: export NO_MKDOCS_2_WARNING ?= 1
docs: $(STAMP)
	$(BIN)/python -m pelagos.platform.config.reference > docs/job-file.md
	$(BIN)/python -m pelagos.cli.reference > docs/cli.md
	$(BIN)/python -m pelagos.cli.shipped_tables
	$(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

MUTANTS_OF ?=
MUTANTS_SEED ?=
MUTANTS_SAMPLE ?=
mutants: export OMP_NUM_THREADS ?= 1
mutants: export OPENBLAS_NUM_THREADS ?= 1
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable ".[mutants]"
	nice -n 10 $(BIN)/python benchmarks/mutants.py "$(MUTANTS_OF)" \
	  $(if $(MUTANTS_SEED),--seed $(MUTANTS_SEED)) $(if $(MUTANTS_SAMPLE),--sample $(MUTANTS_SAMPLE))

lock: $(STAMP)
	uv pip compile --quiet pyproject.toml --extra dev --constraint constraints.txt --universal \
	    --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  | $(BIN)/python requirements/lock.py
