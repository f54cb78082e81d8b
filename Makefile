# One command for each thing that a contributor does; `make` alone lists them.
# PYTHON chooses the interpreter of a new .venv (make PYTHON=python3.13 test); ARGS go on to pytest
# (make ARGS="-n 0 -k word" test runs one after the other, for a debugger).

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# `make demo` needs what a user needs, everything else what a contributor needs. The stamps lie in .venv, so that they
# go when it goes.
DEMO := .venv/.installed-demo
DEV := .venv/.installed-dev

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-services kernels lint gpu-check clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO)  ## train a small GPT here, measure its MFU, print the fleet report
	$(BIN)/mfu demo

test: $(DEV)  ## the tests that need neither Debian packages nor a GPU nor much time
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not services and not gpu and not slow" $(ARGS)

test-slow: $(DEV)  ## whole programs and several ranks: the demo, the examples, gloo, conformance
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not services and not gpu" $(ARGS)

test-services: $(DEV)  ## the tests that need Debian packages; installs them where it may
	@.ci/packages chromium chromium-driver prometheus
	$(BIN)/python -m pytest -m services $(ARGS)

kernels: $(DEV)  ## compile every kernel for every architecture and look at the machine code; needs no GPU
	$(BIN)/python -m mfu_kernels.aot $(ARGS)

lint: $(DEV)  ## style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

gpu-check: $(DEV)  ## the tests that need a GPU, with a JSON report in benchmarks/results/
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

clean:  ## remove what these targets made, .venv included
	rm -rf .venv build dist mfu-demo.html .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find mfu_sdk kernels examples tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 14) else "Python %d.%d: mfu_sdk needs 3.11 to 3.14; choose one with make PYTHON=python3.13" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[torch,provider]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[torch,provider,dev,hf,verify]'
	@touch $@ $(DEMO)
