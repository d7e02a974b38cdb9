# make paper   regenerates every table and figure        make test    runs every check
# make audit   with and without a link; coverage; seeds    make bench   a table of costs beside other ways
# make lab     JupyterLab on the notebooks               make clean   removes runs/ and build leftovers, never figures/
# make docs    builds the site and checks its links
# make setup   only the environment (.venv), which all the others make by themselves

COHORT  ?= phantom
PROFILE ?= quick
JOBS    ?= 2
LAB_FLAGS ?=
PYTHON  ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.radgen-ready
PIP   := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check
LOCK  := -c requirements.lock

# A value as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'

.DEFAULT_GOAL := help
.PHONY: help setup environment paper test audit lab bench docs clean readme

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

# The environment is judged by content: the stamp holds the digest of what it was made from, so a new
# clone of the same files, with other dates, is up to date. It is written last: a set-up that was
# stopped half-way has none, and the next one begins afresh. An environment that is a link belongs to
# somebody else: it is used as it is.
MADE_FROM := requirements.lock settings.ini setup.py
DIGEST := $(shell cat $(MADE_FROM) | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c 1-64)

setup:
	@if [ -L $(VENV) ]; then \
	  [ -x $(BIN)/radgen ] || { echo "radgen: $(VENV) is a link to an environment without radgen: remove the link, or install radgen there" >&2; exit 2; }; \
	elif [ "$$(cat $(READY) 2>/dev/null)" != "$(DIGEST)" ]; then $(MAKE) --no-print-directory environment; fi

environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "radgen: Python 3.11 is needed and $(PYTHON) is not one: install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "radgen: $(PYTHON) has no venv module: install it (Debian and Ubuntu: python3.11-venv)" >&2; exit 2; }
	@command -v $${CC:-cc} >/dev/null || command -v gcc >/dev/null || \
	  { echo "radgen: a C compiler is needed to build PyRadiomics: install gcc or clang, or name one: CC=/path/to/cc" >&2; exit 2; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || \
	  { echo "radgen: the headers of $(PYTHON) are needed to build PyRadiomics: install them (Debian and Ubuntu: python3.11-dev)" >&2; exit 2; }
	@if [ -L $(VENV) ]; then echo "radgen: $(VENV) is a link: remove it to set up an environment here" >&2; exit 2; fi
	@if [ -e $(READY) ]; then echo "radgen: bringing $(VENV) up to date"; \
	 else echo "radgen: setting up $(VENV): some minutes, once"; $(PYTHON) -m venv --clear $(VENV); fi
	@echo "  1 of 4  build tools"
	@$(PIP) $(LOCK) setuptools wheel numpy versioneer cython
	@echo "  2 of 4  PyRadiomics, from source"
	@$(PIP) $(LOCK) --no-build-isolation pyradiomics
	@echo "  3 of 4  everything else; torch is large"
	@$(PIP) -r requirements.lock
	@echo "  4 of 4  radgen itself"
	@$(PIP) --no-deps --no-build-isolation --use-pep517 -e .
	@echo "$(DIGEST)" > $(READY).part && mv $(READY).part $(READY)
	@echo "radgen: $(VENV) is ready"

paper: setup
	@$(BIN)/radgen paper --cohort $(call quoted,$(COHORT)) --profile $(call quoted,$(PROFILE)) --jobs $(call quoted,$(JOBS)) \
	  $(if $(MANIFEST),--manifest $(call quoted,$(MANIFEST)))

# Library notebooks run in processes of their own. Paper notebooks need the ones before them and are
# tested by pytest, on a smoke run.
HOUSE := tests/test_house.py tests/test_style.py tests/test_docs.py

test: export OMP_NUM_THREADS := 1
test: setup
	@echo "radgen: 1 of 3  the package is what the notebooks export, and the house rules"
	@$(BIN)/python -m pytest -q -n $(JOBS) $(HOUSE)
	@echo "radgen: 2 of 3  library notebooks"
	@$(BIN)/python tests/notebooks.py --jobs $(JOBS)
	@echo "radgen: 3 of 3  everything else, with the coverage of the package"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov=radgen --cov-report= \
	  $(foreach f,$(HOUSE),--ignore=$(f)) tests/test_pipeline.py tests
	@echo "radgen: these tests run $$($(BIN)/coverage report --format=total) % of the package's lines"

audit: setup
	@$(BIN)/radgen validate --profile $(call quoted,$(PROFILE)) --jobs $(call quoted,$(JOBS))

bench: setup
	@$(BIN)/radgen bench --profile $(call quoted,$(PROFILE))

lab: setup
	@$(BIN)/python -m jupyterlab nbs $(LAB_FLAGS)

# The site is built from notebooks as they are stored; nothing is executed.
docs: setup
	@$(BIN)/python docs/build.py

# README.md is the index notebook, executed (its table of times is read from figures/) and converted.
readme: setup
	@$(BIN)/python -m nbconvert --to notebook --execute --inplace --log-level WARN nbs/index.ipynb
	@$(BIN)/nbdev_clean --fname nbs/index.ipynb
	@$(BIN)/python -m nbconvert --to markdown --no-input --log-level WARN --output-dir . --output README nbs/index.ipynb

clean:
	@rm -rf runs build dist .pytest_cache _docs _proc docs/_build
	@find nbs radgen tests -name __pycache__ -prune -exec rm -rf {} + ; find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
	@echo "radgen: runs/ and build leftovers are gone; figures/ and $(VENV) are as they were"
