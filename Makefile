# `make demo` and `make test` do all the set-up: Python >= 3.10 and make are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test fast check format clean

demo: $(VENV)/.installed
	$(BIN)/kshot demo

# One thread for each process: where others use the same cores, threads that wait for one another take many times longer.
test fast: export OMP_NUM_THREADS = 1
# Tests of one file stay together, so that what they share is made once; an idle process takes from the other's rest.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal

# The slow tests need no coverage, whose tracing would make them slower: the fast ones reach all that is asked for.
test: $(VENV)/.installed
	$(PYTEST) -m "not slow" --cov --cov-report=
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m coverage report --include="*/kshot/core/*,*/kshot/engine/*,*/kshot/evaluation/*,*/kshot/algorithms/*" --fail-under=95 --format=total
	$(PYTEST) -m "slow" --timeout=900

fast: $(VENV)/.installed
	$(PYTEST) -m "not slow" -x -q

check: $(VENV)/.installed
	$(BIN)/ruff format --check src tests examples
	$(BIN)/ruff check src tests examples
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff format src tests examples
	$(BIN)/ruff check --fix src tests examples

# The stamp is newer than what it was made from, so a change of the requirements installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'kshot needs Python >= 3.10, this is ' + sys.version)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,all]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage dist
