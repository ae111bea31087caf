# The few commands; `make` alone lists them. Everything lives in .venv, which the first command makes.
# A Python 3.11 or newer is looked for; name another with: make PYTHON=/path/to/python3.12 ...

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up test test-long check servers schemas bench bench-peers bench-plots sim sim-long mutants chaos python-venv

VENV := .venv
BIN := $(VENV)/bin
PEERS := peers/celery_redis peers/dramatiq_rabbit peers/taskiq_nats
BESIDE := $(PEERS) plots
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && exit; done; echo python3)

FOLDER ?=
SEED ?= 1
MINUTES ?= 60
STACK ?= nats
SEEDS ?= 0-1999
TESTS ?= tests
# In CI too little coverage is a failure, and the slow tests (clusters, chaos, backups ...) are run too.
IN_CI := $(filter true 1 yes,$(CI))
COVERAGE := $(if $(IN_CI),--cov-fail-under=90)
# Much of the time is spent waiting for servers: two tests at a time, or more where there are processors.
AT_ONCE := -n logical --maxprocesses 4 --dist worksteal
FEWER := $(if $(IN_CI)$(ALL),,-m "not slow and not planted")

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; do \
		printf '  make %-11s %s\n' "$$name" "$$what"; done

setup: $(VENV)/dev.stamp ## make .venv with everything in it, and nothing else
	@echo "Ready: $(BIN)/comity --help"

demo: $(VENV)/base.stamp ## survey a folder of Python code with 32 agents, and lose a node on the way (FOLDER=...)
	@$(BIN)/comity demo $(FOLDER)

up: $(VENV)/base.stamp ## start a network here, in the foreground
	@exec $(BIN)/comity up

test: $(VENV)/dev.stamp ## run the tests, with coverage (ALL=1: the slow ones too, as in CI; TESTS=tests/unit: a part)
	@$(BIN)/python -m pytest $(TESTS) --cov --cov-report=term $(AT_ONCE) $(COVERAGE) $(FEWER)

test-long: $(VENV)/dev.stamp ## try the codec with 100,000 cases, and a live network with random bytes (half an hour)
	@COMITY_CASES=11200 $(BIN)/python -m pytest tests/fuzz tests/e2e/test_fuzz.py -m "" --timeout=3600

check: $(VENV)/dev.stamp ## lint and type-check
	@$(BIN)/ruff check .
	@$(BIN)/mypy

servers: ## fetch what tests need of servers into .servers (etcd, Consul), from Debian's packages; nothing is installed
	@tests/servers.sh

schemas: $(VENV)/base.stamp ## write docs/schemas anew, from the code
	@$(BIN)/python docs/schemas/generate.py

bench-plots: $(VENV)/base.stamp $(VENV)/plots.stamp ## measure how cost grows, and draw it: bench/plots/*.svg (half an hour)
	@$(VENV)/plots/bin/python bench/plots.py --comity $(BIN)/comity

bench: $(VENV)/base.stamp ## measure durable tasks and live messages on this machine
	@$(BIN)/comity bench tasks
	@$(BIN)/comity bench messages

bench-peers: $(VENV)/base.stamp $(PEERS:%=$(VENV)/%.stamp) ## measure the same tasks on Celery, Dramatiq and Taskiq too
	@$(BIN)/python -m bench.peers --write bench/README.md

sim: $(VENV)/base.stamp ## live one simulated life of the network (SEED=7)
	@$(BIN)/python -m comity.sim $(SEED)

chaos: $(VENV)/dev.stamp ## real processes and servers under faults for an hour (STACK=classic MINUTES=5 SEED=7); see chaos-report
	@$(BIN)/python tests/chaos/run.py --stack $(STACK) --minutes $(MINUTES) $(if $(filter command environment,$(firstword $(origin SEED))),--seed $(SEED))

sim-long: $(VENV)/base.stamp ## live 2,000 simulated lives on all processors (SEEDS=0-1999)
	@$(BIN)/python -m comity.sim --seeds $(SEEDS)

mutants: $(VENV)/dev.stamp ## plant bugs, one at a time, and see that each is found
	@$(BIN)/python tests/simulation/mutants.py

# How .venv is made: with uv if it is there, else with Python's own venv and pip. The lock files carry hashes.
# `packages`: what a lock file names, into the environment whose programs are in $(2). `install`: into .venv, with Comity itself.

define packages
	@echo "Installing from $(1) (once)"
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(2)/python --require-hashes -r $(1); \
	else \
		{ $(2)/python -m pip --version >/dev/null 2>&1 || $(2)/python -m ensurepip >/dev/null; } && \
		$(2)/python -m pip install -qq --disable-pip-version-check --require-hashes -r $(1); \
	fi
endef

define install
	$(call packages,$(1),$(BIN))
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
endef

$(VENV)/base.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,requirements.lock)
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(call install,requirements-dev.lock)
	@touch $(VENV)/base.stamp $@

# Each system that Comity is measured beside, and what draws, has an environment of its own, inside ours.
$(BESIDE:%=$(VENV)/%.stamp): $(VENV)/%.stamp: bench/%.lock | $(VENV)/%/bin/python
	$(call packages,$<,$(VENV)/$*/bin)
	@touch $@

$(BESIDE:%=$(VENV)/%/bin/python): | $(BIN)/python

$(BIN)/python $(BESIDE:%=$(VENV)/%/bin/python): %/bin/python:
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "Comity needs Python 3.11 or newer, and $(PYTHON) is not. Name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --clear --python "$$(command -v $(PYTHON))" $*; \
	else \
		{ $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory python-venv PYTHON=$(PYTHON); } && \
		$(PYTHON) -m venv --clear $*; \
	fi

# Debian and Ubuntu keep Python's venv module in a package of its own.
python-venv:
	@package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "Installing $$package"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && { apt-get install -y -qq --no-install-recommends $$package || \
			apt-get install -y -qq --no-install-recommends python3-venv; } >/dev/null; \
	else \
		echo "$(PYTHON) lacks its venv module. Install it (Debian, Ubuntu: sudo apt-get install $$package), or install uv." >&2; \
		exit 1; \
	fi
