# Everything from a fresh clone: only a Python of 3.11 or newer and make are assumed. What is made lies under .venv.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
# The first interpreter that is new enough; `make PYTHON=...` names another.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
# Further words for the program behind a target: make test ARGS='-k echo -x'
ARGS ?=

.PHONY: help
help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(VENV)/.core  ## the service, a simulated fleet and senders on loopback; FOR=20 ends it after 20 s
	@$(BIN)/asyncdicom demo $(if $(FOR),--for $(FOR)) $(ARGS)

.PHONY: test
test: peers lint  ## lint, then every test but the long forms; ARGS go to pytest
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev  ## ruff, mypy and the import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench: peers $(VENV)/.dev  ## the performance bars, against peers in the same run
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: soak
soak: peers $(VENV)/.dev  ## the long forms of the reliability bars
	$(BIN)/python -m pytest -m soak --timeout=7200 $(ARGS)

.PHONY: screenshots
screenshots: peers $(VENV)/.dev  ## the pictures of docs/images anew, from the demo; takes 6 minutes, so that it has a history
	$(BIN)/python -m tests.browser.screenshots

# On Debian as root this installs the foreign programs that tests talk to; elsewhere it says which of them are missing.
.PHONY: peers
peers:
	@$(require_python)
	@"$(PYTHON)" tests/peers/programs.py
	@"$(PYTHON)" -m tests.peers.node

.PHONY: lock
lock: $(VENV)-lock/.made  ## resolve the dependencies anew and write requirements*.lock
	$(COMPILE) --all-extras --group build --group dev --output-file requirements.lock
	$(COMPILE) --extra events --extra testing --group build --constraints requirements.lock --output-file requirements-core.lock

# Nothing but names, versions and hashes: where packages come from is the machine's business.
COMPILE = $(VENV)-lock/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--upgrade --no-header --no-annotate --no-emit-index-url

.PHONY: clean
clean:  ## remove the environment, the caches and everything else that was made
	rm -rf $(VENV) $(VENV)-lock .node build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find asyncdicom tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

define require_python
test -n "$(PYTHON)" || { echo "a Python of 3.11 or newer is needed: none of python3 ... python is one" >&2; exit 1; }
endef

define make_environment
$(require_python); "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	"$(PYTHON)" -m venv --clear $(@D)
endef

$(VENV)/.made:
	@$(make_environment)
	@touch $@

$(VENV)-lock/.made:
	@$(make_environment)
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet --quiet install 'uv>=0.5'
	@touch $@

# What the service needs, with the tools that install the project itself.
$(VENV)/.core: $(VENV)/.made requirements-core.lock pyproject.toml
	@echo "setting up $(VENV)"
	@$(PIP) install --require-hashes -r requirements-core.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# What the tests need on top. No isolation: even what builds a package without a wheel comes from the lock.
$(VENV)/.dev: $(VENV)/.core requirements.lock
	@$(PIP) install --require-hashes --no-build-isolation --use-pep517 -r requirements.lock
	@touch $@
