# make demo         a whole study on the embedded city, without network after the install
# make streets      rendered street scenes through the shipped detector; installs torch (5 GB)
# make dashboard    the demo study in the browser
# make test         lint, types, and all tests, with the versions of requirements.lock
# make test-lowest  the faster unit tests with the lowest versions that pyproject.toml allows
# make lock         resolve requirements.lock and requirements-lowest.txt again
# make bench        every benchmark, each against its peer in the same run
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest
STUDY  ?= demo-study
PIP    := $(BIN)/python -m pip install --quiet --constraint requirements.lock

# Commands and tests start many processes: without .pyc files, each one would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo dashboard streets test test-lowest lint lock bench clean
.DEFAULT_GOAL := demo

# The stamps carry the time of the last install: a second `make` installs nothing.
$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("patrolscope needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) --editable '.[bench]'
	touch $@

$(VENV)/.installed-detect: $(VENV)/.installed
	$(PIP) --editable '.[detect]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/patrolscope demo --study $(STUDY)

dashboard: $(VENV)/.installed
	test -f $(STUDY)/study.yaml || $(BIN)/patrolscope demo --study $(STUDY)
	$(BIN)/patrolscope dashboard --study $(STUDY) --show

streets: $(VENV)/.installed-detect
	$(BIN)/patrolscope streets --study $(STUDY)/streets

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Files keep their order, since the longest ones of tests/integration come first and many short ones of tests/unit fill the
# end. The studies that tests share are built once for both runs. Two tests at a time have a thread each: with more, those of
# torch would spend processor time on waiting for each other.
test: export PATROLSCOPE_STUDIES = test-artifacts/studies
test: lint
	rm -rf $(PATROLSCOPE_STUDIES)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=15
	PATROLSCOPE_SCREENSHOTS=test-artifacts $(BIN)/python -m pytest -m alone --durations=15
	rm -rf $(PATROLSCOPE_STUDIES)

# Without the extra `detect`: its tests skip where torch is missing. Old versions warn about newer ones of each other.
test-lowest: $(VENV)/.installed-dev
	$(BIN)/python -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --requirement requirements-lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --editable .
	$(LOWEST)/bin/python -m pytest tests/unit -m "not slow" --override-ini filterwarnings=default --numprocesses 2 --dist loadfile --quiet

lock: $(VENV)/.installed-dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate --no-emit-index-url --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --resolution lowest-direct --extra test --no-header --no-annotate --no-emit-index-url --output-file requirements-lowest.txt pyproject.toml

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) $(LOWEST) $(STUDY) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache test-artifacts
