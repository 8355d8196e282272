# make demo | make test | make help
#
#   PYTHON=python3.12       the interpreter for the environment (3.11 or newer)
#   TORCH_INDEX=URL         the package index to take torch from, for example one of CPU builds
#   UV=                     do not use uv although it is there
#   VENV=folder             where the environment lives (.venv)

VENV ?= .venv
DEMO_OUT ?= planaria-demo
BIN := $(VENV)/bin
FINE := import sys; sys.exit(sys.version_info < (3, 11))

# The first of the usual names that is new enough; if none is, python3, so that the message below names it.
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(FINE)' 2>/dev/null && echo $$p && break; done),python3)

# uv where it is installed; but it reads none of pip's configuration, so where pip has been told of package folders or
# indexes of its own, only pip will find them.
UV ?= $(shell command -v uv 2>/dev/null)
PIP_SOURCES = $(shell $(PYTHON) -m pip config list 2>/dev/null | grep -qE 'find-links|index-url|no-index' && echo yes)
USE_UV = $(if $(UV),$(if $(PIP_SOURCES),,yes))
INSTALL = $(if $(USE_UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check) --quiet -c constraints.txt

.PHONY: help demo test lint format science clean

help:
	@echo 'make demo     install into $(VENV) and rescue a damaged network; leaves $(DEMO_OUT)/report.html'
	@echo 'make test     install the test tools too, run the checks and the fast tests'
	@echo 'make lint     the checks alone: ruff, mypy, import-linter'
	@echo 'make format   let ruff mend what it can'
	@echo 'make science  the slow tests and those against recorded figures (PLANARIA_DATA=folder with real data)'
	@echo 'make clean    remove $(VENV), caches and the output of the demo'
	@echo 'Variables: PYTHON=python3.12  TORCH_INDEX=URL  VENV=folder  UV= (use pip)'

demo: $(VENV)/.installed
	@$(BIN)/python -m planaria demo --out '$(DEMO_OUT)' $(DEMO_ARGS)
	@echo
	@echo 'The report: $(CURDIR)/$(DEMO_OUT)/report.html'

test: lint
	$(BIN)/python -m pytest -n 2 -m 'not slow and not science' $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

science: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m 'slow or science' --timeout 1800 $(PYTEST_ARGS)

clean:
	rm -rf '$(VENV)' '$(DEMO_OUT)' .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(FINE)' 2>/dev/null || { \
	  echo 'planaria needs Python 3.11 or newer, and $(PYTHON) is not. Name one: make demo PYTHON=python3.12' >&2; exit 2; }
	@test -x $(BIN)/python || $(if $(USE_UV),$(UV) venv --quiet --python $(PYTHON) '$(VENV)',$(PYTHON) -m venv '$(VENV)') || { \
	  echo 'The environment could not be made. Debian and Ubuntu keep what is missing in the package python3-venv.' >&2; \
	  rm -rf '$(VENV)'; exit 5; }
	@echo 'Installing into $(VENV) with $(if $(USE_UV),uv,pip) ...'
ifdef TORCH_INDEX
	@# torch alone from there, so that the index need not hold anything else
	$(INSTALL) --no-deps --index-url '$(TORCH_INDEX)' torch
else
	@if test "`uname -sm`$(PIP_SOURCES)" = 'Linux x86_64' && ! command -v nvidia-smi >/dev/null; then \
	  echo 'Note: on Linux the usual torch build brings the CUDA libraries, about 3 GB. For the CPU build instead:'; \
	  echo '  make demo TORCH_INDEX=<the CPU wheel index listed on the install page of pytorch.org>'; fi
endif
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	@touch $@
