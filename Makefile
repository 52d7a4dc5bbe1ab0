# Two commands: `make demo` shows the whole paper at a small size, `make test` checks the house.
# They need Python 3.11.4 or later, make and a C++ compiler; everything else goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXPERIMENT ?= experiments/quickstart.yaml

.PHONY: demo test test-all test-faults lint environment clean
.DEFAULT_GOAL := demo

demo: environment
	@echo "==> running $(EXPERIMENT); stages that are done already are reused"
	$(BIN)/selfshot run $(EXPERIMENT)
	@echo "==> the report is runs/$(basename $(notdir $(EXPERIMENT)))/report/report.html"

test: lint
	$(BIN)/pytest -m "not slow and not chaos and not faults and not gpu"

test-all: lint
	$(BIN)/pytest -m "not gpu"

# One of each sort of call; SELFSHOT_FAULTS=every takes each, and hours.
test-faults: environment
	$(BIN)/pytest tests/faults

lint: environment
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> making the environment in $(VENV), about five minutes the first time"
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' \
	  || { echo "error: $(PYTHON) is older than 3.11.4; write make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-input --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cpu,dev]'
	@touch $@

# Keeps the environment and runs/; `rm -r .venv` and `rm -r runs` are yours to say.
clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf platform/*.egg-info
	find platform tests -name __pycache__ -type d -prune -exec rm -rf {} +
