PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

N ?= 1000
FIRST ?= 0
JOBS ?= 1
ONNX ?= 0.002

export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test strict cluster fuzz lint format docs bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e ".[$*]"
	@touch $@

venv: $(VENV)/.installed-test ## Create the virtual environment and install the package for tests

demo: $(VENV)/.installed-demo ## Run the demo: text and table columns in one model
	$(BIN)/python examples/multimodal_reviews.py

test: venv ## Run the whole test suite
	$(BIN)/python -m pytest

strict: venv ## Run the whole test suite with warnings as errors, but for those of other packages
	$(BIN)/python -m pytest -W error \
		-W 'ignore:The ``noload`` loader strategy is deprecated' \
		-W 'ignore:`use_:DeprecationWarning' \
		-W 'ignore:X does not have valid feature names' \
		-W ignore::PendingDeprecationWarning

cluster: venv $(VENV)/.installed-cluster ## Run the tests on several machines, which are processes here, and on S3
	$(BIN)/python -m pytest tests/cluster -m cluster -n 0

fuzz: venv ## Run N=1000 cases of the fuzzer from seed FIRST=0 on, in JOBS=1 processes
	$(BIN)/python -m tests.fuzz --cases $(N) --first $(FIRST) --jobs $(JOBS) --onnx $(ONNX)

lint: venv ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv ## Fix what the linter can fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv $(VENV)/.installed-docs ## Build the HTML documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: venv $(VENV)/.installed-bench ## Run the benchmarks; DATA=directory holds their data sets
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/sequence_speed.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/importances.py
	$(BIN)/python benchmarks/large_tables.py
	$(BIN)/python benchmarks/ranking.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/tracking.py
ifdef DATA
	$(BIN)/python benchmarks/data_sets/tabular.py --data "$(DATA)"
	$(BIN)/python benchmarks/data_sets/sequences.py --data "$(DATA)"
	$(BIN)/python benchmarks/data_sets/two_tower.py --data "$(DATA)"
else
	@echo "benchmarks/data_sets is left out: it needs DATA=directory with data sets"
endif

clean: ## Remove the virtual environment, caches and build output
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/generated docs/gallery docs/sg_execution_times.rst
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
