# Two commands are all a newcomer needs: `make demo` and `make test`. Each makes its own virtual environment first
# (.venv, once; a stamp file remembers what is installed) and needs nothing but Python >= 3.10 and make.
#
#   make demo                      run examples/prune_digits.py (under 3 minutes on 2 cores); writes out/prune_digits.png
#   make test                      run the tests                 make test PYTEST_ARGS="-k coupling -x"
#   make lint                      ruff and mypy
#   make bench                     benchmarks/budget.py (benchmarks/README.md says what it needs besides)
#   make clean                     remove the virtual environment and every cache
#
# Variables
#   PYTHON=python3.12              the interpreter that makes the virtual environment
#   VENV=path                      the environment to use; if it exists already it is used as it is, its torch included
#   VENV_FLAGS=...                 more flags for `python -m venv`, such as --system-site-packages
#   JOBS=2                         processes that share the tests; 0: in this one
#   OWN_TORCH=1                    install no pinned versions: a torch that the environment already sees is left alone

PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
OWN_TORCH ?=
PYTEST_ARGS ?=
JOBS ?= 2
DEMO_ARGS ?=
BENCH_ARGS ?=

CONSTRAINTS := $(if $(OWN_TORCH),,-c constraints.txt)
VENV_FLAGS += $(if $(OWN_TORCH),--system-site-packages)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet $(CONSTRAINTS)

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.solvemut-demo
	$(PY) examples/prune_digits.py $(DEMO_ARGS)

test: $(VENV)/.solvemut-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.solvemut-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(VENV)/.solvemut-demo
	$(PY) benchmarks/budget.py $(BENCH_ARGS)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "solvemut needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

# torch goes in alone and first: a plain `pip install torch==<pin>` gives the CPU build where the index has one, and once
# it is there no later range pulls another build.
$(VENV)/.solvemut-torch: constraints.txt | $(PY)
	$(PIP) torch
	@touch $@

$(VENV)/.solvemut-%: $(VENV)/.solvemut-torch pyproject.toml constraints.txt
	$(PIP) -e '.[$*]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
