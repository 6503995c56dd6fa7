# `make` lists the targets. Everything runs in .venv, which is made when first needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The folder that holds mnist.h5.
DATA := $(or $(DIFFUSE_DATA),data)

# The image's base and labels.
APPTAINER ?= $(or $(shell command -v apptainer singularity | head -n 1),apptainer)
BUILD_ARGS := $(if $(FROM),--build-arg FROM=$(FROM)) \
  $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) \
  --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
  --build-arg COMMIT=$(or $(shell git describe --always --dirty=+ --abbrev=40 2>/dev/null),unknown)

# As tests/conftest.py groups and orders them. Two of four processes mostly wait for Slurm's jobs.
IN_PARALLEL := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help play quickstart test test-fast cluster drill check bench gpu image clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

play: $(VENV)/.train ## Draw pictures with the trained models that come along (two minutes, no training)
	$(BIN)/python -m diffuse.sample ddpm/unet -n 64 --output play
	$(BIN)/python -m diffuse.sample ddpm/unet_labels --digit 7 -n 16 --output play
	$(BIN)/python -m diffuse.sample cold/unet-row -n 64 --sampler unconditional --output play
	$(BIN)/python -m diffuse.sample cold/unet-col -n 64 --sampler unconditional --output play

quickstart: $(VENV)/.train $(DATA)/mnist.h5 ## Train both models on real MNIST (10 to 30 minutes on 2 cores) and show pictures
	$(BIN)/python launch/sweep.py --grid quick --cluster local --parallel 2 --data-dir $(DATA)

test: ## Install what the tests need, then run them
	@$(MAKE) --no-print-directory --jobs=2 $(VENV)/.dev cluster
	$(BIN)/python -m pytest -n 4 $(IN_PARALLEL)

test-fast: $(VENV)/.dev ## Run the tests that need no Slurm and take no long time
	$(BIN)/python -m pytest -n 2 $(IN_PARALLEL) -m "not slurm and not slow"

cluster: | $(VENV)/bin/pip
	$(BIN)/python -m tests.cluster.install

drill: $(VENV)/.dev cluster $(DATA)/mnist.h5 ## Attack trainings and sweeps with faults, then programs with odd input (within 30 minutes, or DRILL_MINUTES)
	$(BIN)/python -m tests.drill --data-dir $(DATA) $(if $(SEED),--seed $(SEED))
	DIFFUSE_DATA=$(DATA) $(BIN)/python -m pytest -q tests/test_fuzz.py --hypothesis-profile=drill $(if $(SEED),--hypothesis-seed=$(SEED))

check: $(VENV)/.dev ## Format, lint and type-check, as pre-commit does
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

bench: $(VENV)/.dev $(DATA)/mnist.h5 ## Print the benchmarks' ratios, all measured in this run
	$(BIN)/python -m benchmarks --data-dir $(DATA)

image: ## Build the Apptainer image diffuse.sif (another base: make image FROM=python:3.11-slim-bookworm)
	$(APPTAINER) build $(BUILD_ARGS) diffuse.sif Apptainer.def
	sha256sum diffuse.sif > diffuse.sif.sha256
	stat -c '# %s %.9Y' diffuse.sif | tr -d . >> diffuse.sif.sha256

gpu: $(VENV)/.dev $(DATA)/mnist.h5 ## Check and measure an NVIDIA GPU, within 8 minutes: the table goes to gpu.md
	$(BIN)/python -m benchmarks.gpu --data-dir $(DATA)

clean: ## Remove the environment (runs and data stay)
	rm -rf $(VENV)

$(DATA)/mnist.h5: | $(VENV)/.train
	$(BIN)/python -m diffuse.prepare --data-dir $(DATA)

# What to install is decided by pyproject.toml; the stamp files say that it has been done.
$(VENV)/.train: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

# The tests import a quarter of all modules; only these are compiled, when they are imported.
$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $@ $(VENV)/.train

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
