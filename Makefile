# The commands of a newcomer (fit, test) and of a contributor (lint, format, docs). Each installs what it needs.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: fit test lint format docs clean

# Train on the embedded corpus and show the clusters found
fit: .venv/installed
	$(BIN)/ncmtl fit --config lightning_cli.yaml

# Run the tests, on all cores
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

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

clean:
	rm -rf .venv build dist *.egg-info docs/reference/lightning_ncmtl.*
