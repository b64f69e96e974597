# `make bench` and `make test` do all their own set-up. What they need: Python >= 3.11, a C++20 compiler, make.
#   make test VENV= PYTHON=python3     uses an environment that exists: no pip, no network
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

.PHONY: help bench test test-all compile-check lint gpu build emulated cuda doctor depth clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

bench: build  ## check and time every op on every engine that can run here, train two small networks; results in out/
	$(RUN) -m benchmarks bench

test: build  ## the quick suite: 15 minutes on two cores
	$(RUN) -m pytest $(TESTS) -n $(WORKERS) -m "not slow and not compile" $(PYTEST)

test-all: build  ## every test, and the compile checks
	$(RUN) -m pytest $(TESTS) -n $(WORKERS) $(PYTEST)

compile-check: $(READY)  ## nvcc for sm_80, sm_90a and sm_100 without spills or local memory; NVRTC for every kernel
	$(RUN) -m pytest tests -n $(WORKERS) -m compile $(PYTEST)

lint: $(READY)  ## ruff, mypy, clang-format and the style check
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(CLANG_FORMAT) --dry-run -Werror $(CPP_FILES)
	$(RUN) -m tests.style.check

# What is built is used, and nothing is built: a machine with a GPU may have no compiler, and little time.
gpu: $(READY)  ## prove and measure everything on a GPU in eight minutes: MINUTES=8 OUT=out/gpu DEVICE=cuda GPU="--then"
	$(RUN) -m benchmarks gpu --minutes $(MINUTES) --out $(OUT) --device $(DEVICE) $(GPU)

build: emulated cuda  ## the emulated kernels, and the CUDA kernels where nvcc is

emulated: $(READY)
	$(RUN) kernels/build.py emulated

cuda: $(READY)
	$(RUN) kernels/build.py cuda --optional

doctor: $(READY)  ## what can run here, and what would make the rest run
	$(RUN) -m torch_unroll doctor

$(VENV)/requirements.txt: requirements.txt
	@test -n "$(PYTHON)" || { echo "torch-unroll: no Python 3.11 or newer runs here: install one, or name it: make PYTHON=..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "torch-unroll: $(PYTHON) cannot make a virtual environment: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@cp requirements.txt $@

depth: $(READY)  ## does a deeper network learn? residual-20 against plain-56 on real digits, with a plot in out/
	$(RUN) -m torch_unroll depth

clean:  ## what was built; the virtual environment stays
	rm -rf build dist out pyext/torch_unroll/lib pyext/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
