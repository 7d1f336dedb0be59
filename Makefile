# On a fresh machine with Python >= 3.11 and git: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Where a wheel for this machine is already at hand, pip's own settings find it.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test lowest check format clean

setup: .venv/.demo
demo: .venv/.demo
	$(BIN)/surefoot demo
test: .venv/.dev
	$(BIN)/python -m pytest
# With the lower bounds of pyproject.toml; downloads gigabytes. What old libraries deprecate of each other is no failure.
lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	.venv-lowest/bin/python -m pip install --quiet --no-deps torchattacks
	.venv-lowest/bin/python -m pytest -W default
check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.venv:
	$(PYTHON) -c 'import sys; sys.exit("surefoot needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	touch $@
.venv/.demo: .venv/.venv pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@
.venv/.dev: .venv/.demo
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps torchattacks  # an oracle; its pins on torchvision and an old requests are not needed
	touch $@

clean:
	rm -rf .venv .venv-lowest build *.egg-info .pytest_cache .mypy_cache .ruff_cache
