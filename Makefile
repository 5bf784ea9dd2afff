# make book   run the miniature experiments and build the book
# make test   lint, types and tests
# Either works first in a fresh clone; what is still valid is not done again. Needs GNU make and Python 3.11 or newer.

# Another interpreter: make PYTHON=/path/to/python3.12 book
PYTHON ?= python3

# A book without the solutions of its exercises: make html SOLUTIONS=0
SOLUTIONS ?= 1

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install book html test bench bench-gpu clean

help:
	@echo 'make book     install, run the miniature experiments, build the book: book/_build/html/index.html'
	@echo 'make html     build the book only, from the notebooks that were promoted before; SOLUTIONS=0 leaves out solutions'
	@echo 'make test     install, then lint, types and tests'
	@echo 'make bench    speed and memory against plain implementations and peers, on the CPU (an hour)'
	@echo 'make bench-gpu  the same for one GPU, and the tests that need one (ten minutes)'
	@echo 'make install  set up $(VENV) only'
	@echo 'make clean    remove the built book and the executed notebooks, but not $(VENV) nor the cache'

install: $(INSTALLED)

book: $(INSTALLED)
	$(BIN)/mergekit-lite run miniature
	$(BIN)/mergekit-lite promote miniature
	$(BIN)/mergekit-lite book

html: $(INSTALLED)
	$(BIN)/mergekit-lite book $(if $(filter 0,$(SOLUTIONS)),--no-solutions)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.adamerging_step
	$(BIN)/python -m benchmarks.fw_memory
	$(BIN)/python -m benchmarks.merge_throughput
	$(BIN)/python -m benchmarks.frank_wolfe_step
	$(BIN)/python -m benchmarks.regmean_merge
	$(BIN)/python -m benchmarks.decode_cache

bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf build book/_build .mypy_cache .pytest_cache .ruff_cache

# The default interpreter may be too old on a machine that has a newer one beside it; an interpreter that was asked for is
# never swapped for another.
$(INSTALLED): pyproject.toml
	@set -eu; \
	if [ '$(origin PYTHON)' = file ]; then candidates='$(PYTHON) python3.13 python3.12 python3.11'; else candidates='$(PYTHON)'; fi; \
	found=; \
	for candidate in $$candidates; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "mergekit-lite needs Python 3.11 or newer; tried: $$candidates." >&2; \
	  echo 'Install one, or name one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),book)' >&2; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	  echo "Setting up $(VENV) with $$("$$found" --version) ..."; \
	  "$$found" -m venv --clear $(VENV) || { \
	    echo "$$found could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi; \
	echo 'Installing mergekit-lite and what it needs (minutes when nothing is cached: PyTorch is large) ...'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[book,test]'; \
	touch $@
