# make demo | test | test-torch | sanitize | bench | bench-models | report | doctor | docs | wheel | lint | types | clean
# (make help)
#
# Everything runs in .venv, which the first target makes. VENV=path and PYTHON=python3.x choose others;
# TORCH="torch torchvision" gives a new .venv another torch than the one that figures are taken with.

PYTHON ?= python3
VENV ?= .venv
NEWEST_TORCH := torch==2.14.1 torchvision==0.29.1
TORCH ?= $(NEWEST_TORCH)
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CPP := $(shell find csrc tests/cuda_host tests/cpu_calls -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help demo test test-torch sanitize bench bench-models report gpu-check gpu-models doctor docs wheel lint format types clean

help:
	@echo "make demo       build, then run a real model with and without chattn_cuda (main job)"
	@echo "make test       build, then run the tests"
	@echo "make test-torch TORCH=torch==2.12.1   the tests with another torch; TESTS=short: what depends on it"
	@echo "make sanitize   the slow tests: races, sanitizers, mutants of the CUDA kernels, whole models"
	@echo "make bench      build, then compare with eager PyTorch and torch.compile (pytest-benchmark)"
	@echo "make bench-models  whole models, eager, accelerated, compiled and both (25 min on 2 cores)"
	@echo "make report     a page of their last figures, or the published ones: build/report/index.html"
	@echo "make gpu-check  on a machine with a GPU: build with \$$PYTHON, measure, check, test (6 min)"
	@echo "make gpu-models there: whole models, eager, accelerated, compiled and both (6 min)"
	@echo "make doctor     what is built and what can run here"
	@echo "make docs       the site of the documents and the reference, in site/"
	@echo "make wheel      sdist and wheel in dist/, tried with torch 2.11 to 2.14 in fresh environments"
	@echo "make lint       ruff, clang-format;   make format applies them"
	@echo "make types      mypy"
	@echo "make clean      remove build results (not .venv)"

NEW_VENV = test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --upgrade pip

# Packages; made again when the project's requirements change.
$(VENV)/.packages: pyproject.toml
	$(NEW_VENV)
	$(BIN)/python -m pip install --quiet $(foreach package,$(TORCH),"$(package)") ninja
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel
	touch $@

# The package itself, in place, with what its tests and demo need.
OR_SHOW = || { grep 'chattn_cuda:' build.log; echo "the build failed; all of it is in build.log"; exit 1; }
INSTALL = $(BIN)/python -m pip install --verbose --no-build-isolation --editable ".[test]" > build.log 2>&1 \
	$(OR_SHOW); grep -E 'chattn_cuda: (CPU|CUDA)' build.log | sed 's/^ *//'

# With CUDA kernels where there is an nvcc. That holds the CPU kernels, too.
$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	@$(INSTALL)
	touch $@ $(VENV)/.built-cpu

# The CPU kernels alone, in a minute or two; both builds share their object files.
$(VENV)/.built-cpu: $(VENV)/.packages $(SOURCES)
	@echo "no NVIDIA driver here: building the CPU kernels only, in a minute or two;"
	@echo "with an nvcc, make test or CHATTN_BUILD_CUDA=1 make demo compiles the CUDA kernels, too"
	rm -f $(VENV)/.built
	@export CHATTN_BUILD_CUDA=0; $(INSTALL)
	touch $@

# What can run here. Of the driver there is one of these files; the last is that of WSL.
DRIVER := $(wildcard /dev/nvidiactl /proc/driver/nvidia/version /dev/dxg)
RUNNABLE := $(VENV)/.built$(if $(DRIVER)$(filter 1,$(CHATTN_BUILD_CUDA)),,-cpu)

$(VENV)/.lint: $(VENV)/.built
	$(BIN)/python -m pip install --quiet --group lint
	touch $@

# Sources are read and not imported: neither torch nor a build is needed.
$(VENV)/.docs: pyproject.toml
	$(NEW_VENV)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

# It reads files and draws: nothing is built for it.
$(VENV)/.report: $(VENV)/.packages
	$(BIN)/python -m pip install --quiet --group report
	touch $@

demo: $(RUNNABLE)
	$(BIN)/python -m chattn_cuda demo

# After so many failures something is broken that all of them show.
FAILURES ?= --maxfail=20

# Processes that share the tests.
WORKERS ?= auto
TESTS ?= tests
PYTEST = python -m pytest -q -n $(WORKERS) --dist worksteal $(FAILURES)

test: $(VENV)/.built
	$(BIN)/$(PYTEST) $(TESTS)

# What depends on torch (TESTS=short): numerics of all blocks on every backend, modules, accelerate,
# torch.compile, export; not the CUDA kernels on the host, which depend on g++. The longest tests first: at the end one
# process would wait for another.
SHORT := $(addprefix tests/,compat/test_graphs.py test_operator_gradients.py test_compile_rule.py test_tail_compile.py \
	test_numerics.py test_drop_ins.py test_modules.py test_eca_modules.py test_se_relatives.py \
	test_module_uses.py test_convert.py test_sk_layers.py test_sk_network.py \
	$(addprefix test_packaging.py::test_,operators_compile_with_the_headers_of_this_torch \
		binary_uses_only_the_stable_abi) \
	$(addprefix test_autograd.py::test_,compile_without_graph_break_or_recompilation \
		compile_with_dynamic_shapes compile_in_inference \
		compile_around_torch_func compile_under_autocast compile_of_the_formulas) \
	test_export.py \
	$(addprefix test_fullgraph.py::test_one_graph,[squeeze_excite] [selective_kernel] [SqueezeExcite] \
		[EfficientChannelAttention] [SelectiveKernelAttn] [SplitAttn])) \
	--deselect tests/test_tail_compile.py::test_same_numbers_by_inductor \
	-k "not (test_against_float64 and cuda_host)"

# The tests with another torch, in a venv of its own that sees the packages of .venv behind its own,
# and the extension built there: one serves every torch. pip chooses the torchvision, the Triton and
# the CUDA libraries of that torch; the interpreter of Triton 3.6 fails with numpy 2.4.
OLDEST_TORCH := torch==2.11.0
test-torch: TORCH = $(OLDEST_TORCH)
test-torch: OTHER = $(VENV)-$(subst =,,$(firstword $(TORCH)))
test-torch: SITE = import sysconfig; print(sysconfig.get_path("purelib"))
test-torch:
	$(MAKE) $(VENV)/.built TORCH="$(NEWEST_TORCH)"
	test -e $(OTHER)/.packages || { $(BIN)/python -m venv --clear --without-pip $(OTHER) \
		&& echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
			> $$($(OTHER)/bin/python -c '$(SITE)')/shared.pth \
		&& $(OTHER)/bin/python -m pip install --quiet $(foreach package,$(TORCH),"$(package)") \
			torchvision "numpy<2.4" && touch $(OTHER)/.packages; }
	$(OTHER)/bin/$(PYTEST) $(if $(filter short,$(TESTS)),$(SHORT),$(TESTS))

# The checks of docs/testing.md that are too slow for every run of the tests.
sanitize: $(VENV)/.built
	$(BIN)/$(PYTEST) tests -m "sanitize or slow"

bench: $(RUNNABLE)
	$(BIN)/python -m pytest bench -q
	$(BIN)/python tools/bench_parts.py
	$(BIN)/python tools/bench_models.py --show

bench-models: $(RUNNABLE)
	$(BIN)/python tools/bench_models.py

report: $(VENV)/.report
	$(BIN)/python tools/bench_report.py

# No .venv: a machine with a GPU brings its own torch, and may have no network.
gpu-check:
	$(PYTHON) tools/gpu_check.py

gpu-models:
	$(PYTHON) tools/gpu_models.py

doctor: $(RUNNABLE)
	$(BIN)/python -m chattn_cuda doctor

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.wheel: $(VENV)/.packages
	$(BIN)/python -m pip install --quiet --group wheel
	touch $@

# One wheel for every torch from 2.11 on and every Python from 3.10 on. Objects that are there from an
# editable install are used. auditwheel brings none of torch's libraries and names the oldest manylinux
# whose symbols suffice: the C library decides that (dlsym has moved in glibc 2.34); of libstdc++ those
# of g++ 5 do, so that it stays shared, as the exceptions need it that go through libtorch.
WHEEL_TORCH := torch==2.11.0,torchvision==0.26.0 torch==2.13.0
wheel: $(VENV)/.wheel $(SOURCES)
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --sdist --wheel --outdir build/wheel > build.log 2>&1 $(OR_SHOW)
	PATH=$(abspath $(BIN)):$$PATH auditwheel repair --strip --exclude 'libtorch*' --exclude 'libc10*' \
		--wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	$(BIN)/abi3audit --strict --assume-minimum-abi3 3.10 --summary dist/*.whl
	$(BIN)/python tools/wheel_check.py dist/*.whl $(foreach torch,$(WHEEL_TORCH),--torch $(torch))

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows
	@$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

types: $(VENV)/.lint
	$(BIN)/mypy

clean:
	rm -rf build dist site *.egg-info build.log bench/results .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f chattn_cuda/_C*.so $(VENV)/.built $(VENV)/.built-cpu
