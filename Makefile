# `make` lists the targets. Everything runs in .venv, which is made when first needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The folder that holds mnist.h5.
DATA := $(or $(DIFFUSE_DATA),data)

.DEFAULT_GOAL := help
.PHONY: help quickstart test check bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

quickstart: $(VENV)/.train $(DATA)/mnist.h5 ## Train both models on real MNIST (about 10 minutes on 2 cores) and show pictures
	$(BIN)/python launch/sweep.py --grid quick --cluster local --data-dir $(DATA)

test: $(VENV)/.dev ## Install what the tests need, then run them
	$(BIN)/python -m tests.cluster.install
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.dev ## Format, lint and type-check, as pre-commit does
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

bench: $(VENV)/.dev $(DATA)/mnist.h5 ## Print the benchmarks' ratios, all measured in this run
	$(BIN)/python -m benchmarks --data-dir $(DATA)

clean: ## Remove the environment (runs and data stay)
	rm -rf $(VENV)

$(DATA)/mnist.h5: | $(VENV)/.train
	$(BIN)/python -m diffuse.prepare --data-dir $(DATA)

# What to install is decided by pyproject.toml; the stamp files say that it has been done.
$(VENV)/.train: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.train

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
