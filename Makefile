# The project's commands; `make` alone prints them. Everything that they need besides Python, git and
# make is installed into .bootstrap and .venv on the first call, and only when the lock changes after it.

PYTHON ?= python3
UV_VERSION := 0.13.9

BOOTSTRAP := .bootstrap/uv-$(UV_VERSION).stamp
READY := .venv/ready.stamp
UV := .bootstrap/bin/uv
BIN := .venv/bin

# the machine's Python or none: set-up never fetches an interpreter
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help course test lab notebooks check bench bench-peers lock clean

help: ## print these targets
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / && $$1 != "help" {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

course: $(READY) ## run every lesson in the quick profile and print the scoreboard
	@$(BIN)/cookbook course

# Waiting threads that sleep instead of spin, and only two of them, keep small tensors fast on a busy
# or a large machine. The lessons' measurements go to a ledger of their own, not to the reader's.
test: $(READY) ## run the tests and execute every notebook; needs no network
	@mkdir -p build/test && rm -f build/test/ledger.jsonl
	@COOKBOOK_PROFILE="$${COOKBOOK_PROFILE:-quick}" COOKBOOK_LEDGER="$(CURDIR)/build/test/ledger.jsonl" \
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-2}" OMP_WAIT_POLICY="$${OMP_WAIT_POLICY:-passive}" \
	$(BIN)/python -m pytest tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=300

lab: $(READY) ## open JupyterLab at lesson 00
	@$(BIN)/python -m jupyter lab notebooks/00_start_here.ipynb

notebooks: $(READY) ## execute the lessons again, normalize them and bring both twins in step
	@mkdir -p build/notebooks && rm -f build/notebooks/ledger.jsonl
	@COOKBOOK_LEDGER="$(CURDIR)/build/notebooks/ledger.jsonl" $(BIN)/python -m cookbook.notebooks

check: $(READY) ## lint, formatting and types
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m mypy

bench: $(READY) ## print the library's own overheads as interleaved ratios
	@$(BIN)/cookbook bench

bench-peers: $(READY) ## install other libraries and compare their training loops and compressors
	@$(UV) pip install --quiet --python $(BIN)/python --group peers
	@$(BIN)/python -m cookbook.bench.peers

lock: $(BOOTSTRAP) ## bring requirements.lock in step with pyproject.toml; pins that still fit stay
	@$(UV) pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
	  --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean: ## remove what set-up and runs leave behind
	@rm -rf .bootstrap .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	@find cookbook tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# Each stamp is the last thing written, so an interrupted set-up is taken up again by the next call.
$(BOOTSTRAP):
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is not Python 3.11 or newer: install one, or name it with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: the package python3-venv)." >&2; exit 1; }
	@echo "Setting up uv $(UV_VERSION) in .bootstrap …"
	@rm -rf .bootstrap
	@"$(PYTHON)" -m venv .bootstrap
	@.bootstrap/bin/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@touch $@

# A .venv without its stamp may hold half-installed packages, so it is made anew; one with a stale stamp
# is brought up to date. setuptools is in the lock: without build isolation nothing else is fetched.
# uv shows its progress at a terminal, and is silent where nobody watches. It compiles, as pip would: where Python may not write
# bytecode, every process would compile torch again, for a quarter of a minute.
$(READY): requirements.lock pyproject.toml | $(BOOTSTRAP)
	@echo "Installing the locked packages into .venv …"
	@test -f $@ || $(UV) venv --quiet --clear --python .bootstrap/bin/python .venv
	@rm -f $@
	@$(UV) pip sync --compile-bytecode $$(test -t 2 || echo --quiet) --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@echo "$(CURDIR)" > $@

# An environment knows where it was made; in a checkout that was moved or copied it is made again.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif
