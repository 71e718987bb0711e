# The commands of a newcomer (fit, test) and of a contributor (lint, format, docs). Each installs what it needs.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: fit test test-oldest gpu lint format docs clean

# Train on the embedded corpus and show the clusters found
fit: .venv/installed
	$(BIN)/ncmtl fit --config lightning_cli.yaml

# Run the tests, on all cores
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Run the tests of the callback, the layers and the models with the oldest versions that setup.cfg allows. What these
# warn of is left alone.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest --numprocesses auto --dist worksteal --override-ini filterwarnings=default \
		tests/callbacks tests/lightning_ncmtl --ignore tests/lightning_ncmtl/comparison

# Run the tests and the benchmarks that need a GPU, and write results/gpu.md. FDU_MTL=FOLDER adds a training of
# configs/paper.yaml, with VECTORS=FILE, if given
gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py $(if $(FDU_MTL),--fdu_mtl '$(FDU_MTL)') $(if $(VECTORS),--vectors '$(VECTORS)')

# Check style and types
lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lightning_ncmtl

# Rewrite the files in the project's style
format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Build the documentation, without a network: build/docs/index.html. What is wrong in it is an error
docs: .venv/installed
	$(BIN)/sphinx-build --conf-dir docs --nitpicky --fail-on-warning --keep-going --quiet . build/docs

# torch first, by its exact version: another package would ask for the newest
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt torch setuptools
	$(BIN)/pip install --constraint constraints.txt --no-build-isolation --editable '.[cpu,dev]'
	touch .venv/installed

.venv-oldest/installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --constraint constraints-oldest.txt torch setuptools
	.venv-oldest/bin/pip install --constraint constraints-oldest.txt --no-build-isolation --editable \
		'.[cpu,compare,molecules]' fsspec hypothesis lightning pytest pytest-timeout pytest-xdist
	touch .venv-oldest/installed

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info docs/reference/lightning_ncmtl.*
