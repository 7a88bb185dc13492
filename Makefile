# Two commands on a fresh machine: `make demo` and `make test`. Nothing to activate.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
CORE   := $(VENV)/.core
STAMP  := $(VENV)/.installed
PROJECTS := core plugins/rhapsody-dask plugins/rhapsody-dragon plugins/rhapsody-radical
DIST     ?= dist

# netifaces2 is the netifaces that RADICAL asks for, as a wheel: uv takes it instead, by pyproject.toml, so that nothing
# is compiled. Dragon has no wheels for Python 3.14 (a recipe is expanded before it runs, so a shell asks the new Python).
EDITABLE := -e 'core[test,docs,bench]' -e 'plugins/rhapsody-dask[test]' -e 'plugins/rhapsody-radical[mpi]' netifaces2
DRAGON    = $(BIN)/python -c 'import sys; print("$(1)" if sys.version_info < (3, 14) else "")'
ENGINES  ?= concurrent,dask,radical$(shell $(call DRAGON,$(COMMA)dragon))
COMMA    := ,
PIP       = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
LANES    ?= 2
PYTEST    = RHAPSODY_REQUIRE_BACKENDS=$(ENGINES) $(BIN)/python -m pytest

# uv trusts the machine's own certificates, as pip does where it is configured so.
export UV_SYSTEM_CERTS := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-cluster test-nightly test-core test-all test-fresh test-fresh-whole lint types bench docs dist clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with every distribution, editable

# .unfinished is there from before .venv is made until what was to be installed is: an interrupted try begins anew.
define begin
@if ! test -x $(BIN)/python || test -e $(VENV)/.unfinished || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "Python 3.11, 3.12, 3.13 or 3.14 is needed; name one: make install PYTHON=python3.12"; exit 1; }; \
	rm -rf $(VENV) && mkdir $(VENV) && touch $(VENV)/.unfinished && $(PYTHON) -m venv $(VENV) || exit 1; \
fi
@touch $(VENV)/.unfinished && rm -f $(CORE) $(STAMP)
endef

$(CORE): core/pyproject.toml constraints.txt
	$(begin)
	@echo "installing the core into $(VENV)"
	@$(PIP) -e core
	@touch $@ && rm $(VENV)/.unfinished

$(STAMP): $(PROJECTS:%=%/pyproject.toml) constraints.txt
	$(begin)
	@echo "installing everything into $(VENV)"
	@$(PIP) uv
	@set -- $(EDITABLE) $$($(call DRAGON,-e plugins/rhapsody-dragon)); \
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet -c constraints.txt "$$@" || \
		{ echo "uv could not; pip, which knows this machine's configuration, tries"; $(PIP) "$$@"; }
	@touch $(CORE) $@ && rm $(VENV)/.unfinished

demo: $(CORE)  ## run the main job on the local backend
	$(BIN)/rhapsody demo

test: install lint types  ## everything but the nightly round, on the real engines
	@RHAPSODY_REQUIRE_BACKENDS=$(ENGINES) LANES=$(LANES) PYTHON=$(BIN)/python ./tests/run.sh

test-cluster: install  ## the engines on several nodes, made of namespaces (needs root and Debian's Slurm and sshd)
	@./tests/cluster/run.sh

test-nightly: install  ## long soaks, losses of each part, restarts, free-threaded Python, make test in bare Debians
	$(PYTEST) --nightly -m nightly --durations=25
	UV=$(CURDIR)/$(UV) PYTHONS="3.13t 3.14t" MAY_LACK=1 ./tests/on_every_python.sh
	$(MAKE) test-fresh-whole

test-core: install  ## the core alone, the quick round while you work
	$(BIN)/python -m pytest tests/core tests/contracts tests/conformance

test-all: install  ## the core on every Python of 3.11 to 3.14 that this machine has
	UV=$(CURDIR)/$(UV) ./tests/on_every_python.sh

test-fresh:  ## the two commands, core and doctor in a bare Debian 13, as an ordinary user (needs root, debootstrap)
	./tests/fresh/run.sh trixie core

test-fresh-whole:  ## all of make test there, and on a bare Debian with Python 3.14
	./tests/fresh/run.sh trixie whole
	./tests/fresh/run.sh testing whole

lint: install  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Both at once, each with a cache of its own: one for another platform would replace the other's.
types: install  ## mypy: strict for the source and tests/typing, what the tests do as well; the source for macOS too
	@$(BIN)/mypy --cache-dir .mypy_cache/darwin --platform darwin $(patsubst %,%/src,$(filter-out %-dragon,$(PROJECTS))) & \
	$(BIN)/mypy $(PROJECTS:%=%/src) tests; here=$$?; \
	wait $$! && exit $$here

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
