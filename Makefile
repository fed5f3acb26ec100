# make demo | test | sanitize | bench | doctor | lint | types | clean      (make help explains them)
#
# Everything runs in .venv, which the first target makes. VENV=path and PYTHON=python3.x choose others;
# TORCH="torch torchvision" gives a new .venv another torch than the one that figures are taken with.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CPP := $(shell find csrc tests/cuda_host -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help demo test sanitize bench gpu-check gpu-models doctor lint format types clean

help:
	@echo "make demo       build, then run a real model with and without chattn_cuda (main job)"
	@echo "make test       build, then run the tests"
	@echo "make sanitize   the slow tests: races, sanitizers, mutants of the CUDA kernels, whole models"
	@echo "make bench      build, then compare with eager PyTorch and torch.compile (pytest-benchmark)"
	@echo "make gpu-check  on a machine with a GPU: build with \$$PYTHON, measure, check, test (6 min)"
	@echo "make gpu-models there: whole models, eager, accelerated, compiled and both (6 min)"
	@echo "make doctor     what is built and what can run here"
	@echo "make lint       ruff, clang-format;   make format applies them"
	@echo "make types      mypy"
	@echo "make clean      remove build results (not .venv)"

# Packages; made again when the project's requirements change.
$(VENV)/.packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(foreach package,$(TORCH),"$(package)") ninja
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel "pybind11>=2.13"
	touch $@

# The package itself, in place, with what its tests and demo need.
$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(BIN)/python -m pip install --verbose --no-build-isolation --editable ".[test]" > build.log 2>&1 \
		|| { grep 'chattn_cuda:' build.log; echo "the build failed; all of it is in build.log"; exit 1; }
	@grep -E 'chattn_cuda: (CPU|CUDA)' build.log | sed 's/^ *//'
	touch $@

$(VENV)/.lint: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --group lint
	touch $@

demo: $(VENV)/.built
	$(BIN)/python -m chattn_cuda demo

# After so many failures something is broken that all of them show.
FAILURES ?= --maxfail=20

# Another torch that the built module must run with; empty skips that test.
OTHER_TORCH ?= torch==2.13.0

# Processes that share the tests.
WORKERS ?= auto

test: $(VENV)/.built
	CHATTN_TEST_TORCH="$(OTHER_TORCH)" $(BIN)/python -m pytest tests -q -n $(WORKERS) --dist worksteal $(FAILURES)

# The checks of docs/testing.md that are too slow for every run of the tests.
sanitize: $(VENV)/.built
	$(BIN)/python -m pytest tests -q -m "sanitize or slow" -n $(WORKERS) --dist worksteal $(FAILURES)

bench: $(VENV)/.built
	$(BIN)/python -m pytest bench -q

# No .venv: a machine with a GPU brings its own torch, and may have no network.
gpu-check:
	$(PYTHON) tools/gpu_check.py

gpu-models:
	$(PYTHON) tools/gpu_models.py

doctor: $(VENV)/.built
	$(BIN)/python -m chattn_cuda doctor

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

types: $(VENV)/.lint
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info build.log bench/results .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f chattn_cuda/_C*.so $(VENV)/.built
