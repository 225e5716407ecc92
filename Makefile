# Everything here sets itself up: a virtual environment in .venv, filled from pyproject.toml, refreshed when that changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test chaos chaos-baseline check docs bench-mail bench-scale clean help

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)   ## the main job, end to end, with a worker killed half-way
	@$(BIN)/maintd demo

test: $(READY)   ## every test, against real servers
	@$(BIN)/python -m pytest -n 4  # they mostly wait for other processes

N     ?= 200
SEED  ?= 1

chaos: $(READY)  ## mailings under faults, each made from its seed: make chaos N=200 SEED=1
	@$(BIN)/python -m tests.chaos --seed $(SEED) --count $(N)

chaos-baseline: $(READY)  ## the same faults on plain Celery and on maintd
	@$(BIN)/python -m tests.chaos.baseline

check: $(READY)  ## style, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(READY)   ## write the reference pages from the code they describe
	@$(BIN)/python docs/generate.py

bench-mail: $(READY)   ## messages a second and CPU for each, against others; writes docs/benchmarks.md; ten minutes
	@$(BIN)/python -m benchmarks.mail --write

bench-scale: $(READY)  ## a ledger of ten million deliveries; writes docs/benchmarks.md; ten gigabytes
	@$(BIN)/python -m benchmarks.scale --write

clean:           ## remove what the other targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache maintd-demo
