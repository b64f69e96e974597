# `make bench` and `make test` set up everything themselves. They need Python >= 3.11, a C++20 compiler and make.
#   make test VENV= PYTHON=python3     uses an existing environment, without pip and without a network
#   make test TESTS=tests/rnn WORKERS=4 PYTEST="-x -k packed"

VENV ?= .venv
WORKERS ?= 2
TESTS ?= tests
PYTEST ?=
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
endif

ifeq ($(VENV),)
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/requirements.txt
endif
CLANG_FORMAT := $(if $(VENV),$(VENV)/bin/)clang-format

export PYTHONPATH := $(CURDIR)/pyext:$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export OMP_NUM_THREADS ?= 1
CPP_FILES = $(shell find kernels tests benchmarks -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name '*.cpp')

MINUTES ?= 8
OUT ?= out/gpu
DEVICE ?= cuda
GPU ?=

.PHONY: help bench test test-all compile-check lint docs gpu build emulated cuda doctor depth clean
.DEFAULT_GOAL := help

help:  ## prints this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

bench: build  ## checks and times every op on every engine that runs here, trains two small networks; results in out/
	$(RUN) -m benchmarks bench

test: build  ## runs the quick suite: 15 minutes on two cores
	$(RUN) -m pytest $(TESTS) -n $(WORKERS) -m "not slow and not compile" $(PYTEST)

test-all: build  ## runs every test, and the compile checks
	$(RUN) -m pytest $(TESTS) -n $(WORKERS) $(PYTEST)

compile-check: $(READY)  ## compiles every kernel by nvcc for sm_80, sm_90a and sm_100, without spills or local memory, and by NVRTC
	$(RUN) -m pytest tests -n $(WORKERS) -m compile $(PYTEST)

lint: $(READY)  ## ruff, mypy, clang-format and the style check
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $(CPP_FILES)
	$(RUN) -m tests.style.check

docs: $(READY)  ## renders the documentation and the API reference into out/docs
	$(RUN) -m sphinx -W --keep-going -n -q docs out/docs

# Builds nothing and uses what is built: a machine with a GPU may have no compiler, and little time.
gpu: $(READY)  ## checks and measures everything on a GPU in eight minutes: MINUTES=8 OUT=out/gpu DEVICE=cuda GPU="--then"
	$(RUN) -m benchmarks gpu --minutes $(MINUTES) --out $(OUT) --device $(DEVICE) $(GPU)

build: emulated cuda  ## builds the emulated kernels, and the CUDA kernels where it finds nvcc

emulated: $(READY)
	$(RUN) kernels/build.py emulated

cuda: $(READY)
	$(RUN) kernels/build.py cuda --optional

doctor: $(READY)  ## reports what runs here, and what would make the rest run
	$(RUN) -m torch_unroll doctor

$(VENV)/requirements.txt: requirements.txt
	@test -n "$(PYTHON)" || { echo "torch-unroll: no Python 3.11 or newer runs here: install one, or name it: make PYTHON=..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "torch-unroll: $(PYTHON) cannot make a virtual environment: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@cp requirements.txt $@

depth: $(READY)  ## trains residual and plain networks of two depths on real digits; a plot in out/
	$(RUN) -m torch_unroll depth

clean:  ## removes what was built; the virtual environment stays
	rm -rf build dist out pyext/torch_unroll/lib pyext/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
