# Two commands on a fresh machine: `make demo` and `make test`. Nothing to activate.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
STAMP  := $(VENV)/.installed
PROJECTS := core plugins/rhapsody-dask plugins/rhapsody-dragon plugins/rhapsody-radical
EDITABLE := -e 'core[test,docs,bench]' -e 'plugins/rhapsody-dask[test]' -e plugins/rhapsody-dragon -e 'plugins/rhapsody-radical[mpi]'
DIST     ?= dist
ENGINES  ?= concurrent,dask,dragon,radical

# uv trusts the machine's own certificates, as pip does where it was told to.
export UV_SYSTEM_CERTS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-core test-all lint types bench docs dist clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with every distribution, editable

$(STAMP): $(PROJECTS:%=%/pyproject.toml) constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; name one: make install PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@echo "installing everything into $(VENV)"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet -c constraints.txt $(EDITABLE) || \
		{ echo "uv could not; pip, which knows this machine's configuration, tries"; \
		  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(EDITABLE); }
	@touch $@

demo: install  ## run the main job on the local backend
	$(BIN)/rhapsody demo

test: install lint types  ## everything, on the real engines
	RHAPSODY_REQUIRE_BACKENDS=$(ENGINES) $(BIN)/python -m pytest --durations=25

test-core: install  ## the core alone, the quick round while you work
	$(BIN)/python -m pytest tests/core tests/contracts tests/conformance

test-all: install  ## the core on every Python of 3.11, 3.12 and 3.13 that this machine has
	UV=$(CURDIR)/$(UV) ./tests/on_every_python.sh

lint: install  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy --strict
	$(BIN)/mypy $(PROJECTS:%=%/src)

bench: install  ## measure against the raw engines, in the same run
	$(BIN)/python -m benchmarks

docs: install  ## build the documentation, warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

dist: install  ## a wheel and an sdist of every distribution in dist/
	@rm -rf $(DIST)
	@for project in $(PROJECTS); do $(UV) build --quiet --no-create-gitignore --out-dir $(DIST) $$project || exit 1; done
	@ls $(DIST)

clean:  ## remove what the targets above made
	rm -rf $(VENV) dist docs/_build
