# Everything runs in .venv, which each target makes by itself; Python is the only
# prerequisite (node and npm come with it, from PyPI). Try `make help`.

PYTHON  ?= python3
PROFILE ?= laptop
SEED    ?= 0
PORT    ?= 8000
PYTEST_ARGS ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
VENDOR := book/_vendor/.lock-hash
# Where no profile is asked for, `make serve` shows the book that was built last.
SERVED := $(if $(filter file,$(origin PROFILE)),,--profile $(PROFILE))

.DEFAULT_GOAL := help
.PHONY: help venv vendor book pdf serve lab test lint size clean chromium

help:  ## list the targets
	@echo "make book [PROFILE=smoke|laptop] [SEED=0]         train, evaluate and build the book"
	@echo "make pdf [PROFILE=...]                            the same, and all of it as one PDF (Chromium)"
	@echo "make lab                                          open the notebooks in JupyterLab"
	@echo "make serve [PROFILE=...] [PORT=8000]              look at the built book"
	@echo "make test [PYTEST_ARGS=...]                       lint, doctests and tests"
	@echo "                                                  (as root on Debian, test and pdf install Chromium)"
	@echo "make lint                                         ruff only"
	@echo "make size                                         lines of each part, against their limits"
	@echo "make venv                                         install into .venv, nothing else"
	@echo "make clean                                        remove build/ and the caches"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or newer; now: $(PYTHON))."

venv: $(STAMP)  ## the environment, renewed when requirements.lock or pyproject.toml changes

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
	  { echo "No '$(PYTHON)' here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is `$(PYTHON) -V 2>&1`: try make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "Could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

vendor: $(VENDOR)  ## the scripts that the pages load (MathJax, the widget manager)

$(VENDOR): $(STAMP) book/package.json book/package-lock.json eqr/vendor.py
	$(BIN)/python -m eqr.vendor
	@touch $@

book: $(STAMP) $(VENDOR)
	$(BIN)/eqr book --profile $(PROFILE) --seed $(SEED)

lab: $(STAMP)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

pdf: $(STAMP) $(VENDOR) chromium
	$(BIN)/eqr book --profile $(PROFILE) --seed $(SEED) --pdf

serve: $(STAMP)
	@$(BIN)/eqr serve $(SERVED) --port $(PORT)

size:  ## lines and files of each part, against their limits
	@.ci/size

lint: $(STAMP)
	$(BIN)/ruff check .

test: lint chromium $(VENDOR)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Tests that open a page skip themselves where there is no Chromium, so failing to
# install one is not an error.
chromium:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif [ "`id -u`" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium for the browser tests"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } >/dev/null 2>&1 \
	    || echo "Chromium could not be installed: browser tests skip themselves"; \
	else echo "No Chromium found: browser tests skip themselves, a PDF cannot be made"; fi

clean:  ## keeps .venv and the vendored scripts, which cost a download
	rm -rf build .pytest_cache .ruff_cache
	find eqr tests -name __pycache__ -type d -prune -exec rm -rf {} +
