# The menu. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help install format check lint type test test-fast test-ray test-all cluster-tools test-cluster browser-tools test-browser search clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "csg_ray needs Python 3.11 or newer; set PYTHON=python3.X")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing csg_ray into $(VENV) (torch is large: a few minutes)"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(INSTALL) --group dev
	@touch $@

install: $(VENV)/.installed-dev  ## .venv with the project and the tools

search: $(VENV)/.installed       ## search CSG on digits; a second call starts a second study
	@$(BIN)/csg-ray search search_spaces/digits.yaml

format: $(VENV)/.installed-dev   ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports

type: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint type test-fast       ## format, lint, layers, types, fast tests

test-fast: $(VENV)/.installed-dev
	$(BIN)/pytest -q

test-ray: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m "(ray or ranks) and not slow"

# Side by side: the tests that start Ray mostly wait for processes to start.
test: $(VENV)/.installed-dev     ## everything but the slow tests
	@$(BIN)/pytest -q > .pytest-fast.log 2>&1 & fast=$$!; \
	$(BIN)/pytest -q -m "(ray or ranks) and not slow"; ray=$$?; \
	wait $$fast; fast=$$?; cat .pytest-fast.log; rm .pytest-fast.log; \
	exit $$((ray | fast))

test-all: $(VENV)/.installed-dev ## with the slow tests
	$(BIN)/pytest -q -m "not cluster and not browser and not gpu and not data"

cluster-tools:   ## the Debian packages of test-cluster, where root lacks them
	@for tool in ip ssh sshd rsync; do command -v $$tool > /dev/null || missing=1; done; \
	if [ "$$missing" ] && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
		--no-install-recommends iproute2 openssh-client openssh-server rsync > /dev/null; \
	fi

# Skipped without root or namespaces; where both are there, a missing package is a failure.
test-cluster: $(VENV)/.installed-dev  ## ray up on hosts made of namespaces: Linux, root, five minutes
	$(BIN)/pytest -q -s -m cluster tests/test_ray_up.py

browser-tools:   ## Debian's Chromium, for test-browser and for pictures of figures
	@if ! command -v chromium > /dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
		--no-install-recommends chromium fonts-dejavu-core > /dev/null; \
	fi

test-browser: $(VENV)/.installed-dev browser-tools  ## reports in a real browser, as root on Debian
	$(BIN)/pytest -q -m browser tests/test_report_browser.py

clean:           ## remove .venv and caches; studies and runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
