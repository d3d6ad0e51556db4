# Two commands are all that a newcomer needs: `make demo` and `make test`. Both set up .venv first.
# EXTRA=gpu|cpu|none insists on a build of vLLM (see scripts/setup_venv.py); ARGS is handed on to the tool.

.DEFAULT_GOAL := help
BIN := .venv/bin
# The first Python that is new enough; where none is, the set-up says what is missing.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
EXTRA ?=
# OpenMP threads that wait by spinning starve each other where several processes share the cores.
export OMP_WAIT_POLICY ?= PASSIVE
ARGS ?=

.PHONY: help setup demo demo-judged test test-fast test-gpu check bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup:  ## create or update .venv with pinned versions (every other target does it first)
	@EXTRA='$(EXTRA)' $(PYTHON) scripts/setup_venv.py

demo: setup  ## train three small models, search for their best merge, show it (ARGS="--seed 2")
	$(BIN)/evolve demo $(ARGS)

demo-judged: setup  ## the demo with a judge on vLLM's own server, one of random weights (ARGS="--name again")
	scripts/demo_judged.sh $(ARGS)

test: setup  ## the whole test suite, real engines included (ARGS="tests/evolve -k budget")
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

test-fast: setup  ## the tests that start no engine and train nothing
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not slow and not gpu' $(ARGS)

test-gpu: setup  ## the tests for a node with NVIDIA GPUs
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu $(ARGS)

check: setup  ## lint, formatting, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts/setup_venv.py
	$(BIN)/lint-imports

bench: setup  ## every script in benchmarks/, one after the other
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

clean:  ## caches and build products; .venv, runs/ and trained models stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find evolve fitness workers tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
