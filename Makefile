# make demo     the whole study on the embedded city, no network beyond the install
# make streets  rendered street scenes through the detector that is shipped; installs torch (5 GB)
# make dashboard  the demo study in the browser
# make test     lint, types, all tests
# make bench    every benchmark, each against its peer in the same run
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STUDY  ?= demo-study

.PHONY: demo dashboard streets test lint bench clean
.DEFAULT_GOAL := demo

# The stamps carry the time of the last install: a second `make` installs nothing.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("patrolscope needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/.installed-detect: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[detect]'
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
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadfile --durations=15
	PATROLSCOPE_SCREENSHOTS=test-artifacts $(BIN)/python -m pytest -m alone --durations=15

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) $(STUDY) .pytest_cache .mypy_cache .ruff_cache test-artifacts
