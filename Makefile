# make demo   train MacGNN on MovieLens-100K and show what it learned
# make test   build the [sparse] extra and run the tests
# make lint   run ruff and mypy
# make attack search for an hour or two, at night, where make test searches for a minute or two: the
#             tests of tests/attack on 100 times as many examples, others each time
#
# Each first makes .venv and installs what it needs there, torch before all else; the second time
# nothing is left to install. Another build of torch, for example the small one without CUDA:
#
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo TORCH=torch==2.13.0+cpu

PYTHON ?= python3
TORCH ?= torch==2.13.0
DEMO ?= examples/macgnn.py --dataset movielens-100k
PYTEST_ARGS ?=
ATTACK ?= 100
# Each compiler of torch-sparse takes a gigabyte of memory: lower this where there is little.
MAX_JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

BIN := .venv/bin
# A stamp stands for one finished installation. The first is named after the value of TORCH, so that
# another value installs again.
STAMPS := .venv/stamps
TORCH_STAMP := $(STAMPS)/torch-$(shell printf '%s' '$(TORCH)' | cksum | cut -d ' ' -f 1)
MAG_STAMP := $(STAMPS)/mag
TEST_STAMP := $(STAMPS)/test
LINT_STAMP := $(STAMPS)/lint
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pyg-mag/$(TORCH)

# Asked for, before anything long, only where something is still to be built.
COMPILER := $(if $(and $(wildcard $(TORCH_STAMP)),$(wildcard $(TEST_STAMP))),,compiler)

.PHONY: demo test attack lint compiler
.NOTPARALLEL:

demo: $(MAG_STAMP)
	$(BIN)/python $(DEMO)

test: $(COMPILER) $(TEST_STAMP)
	$(BIN)/pytest $(PYTEST_ARGS)

# What fails prints the seed that repeats it.
attack: $(COMPILER) $(TEST_STAMP)
	$(BIN)/pytest tests/attack --attack $(ATTACK) $(PYTEST_ARGS)

# mypy does not follow package_dir, so it reads an installed copy. A build folder that stays would put
# deleted files into it.
lint: $(LINT_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/lint .
	$(BIN)/mypy build/lint/mag $(wildcard examples/*.py benchmarks/*.py)

compiler:
	@printf '#include <Python.h>\n' | $${CXX:-c++} -fsyntax-only -x c++ \
		-I"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2> /dev/null || { \
		echo 'make test compiles torch-scatter and torch-sparse, and finds no C++ compiler (c++) that' \
			'sees the headers of Python: on Debian or Ubuntu, apt-get install g++ python3-dev.' >&2; exit 1; }

# What was compiled against the torch of before goes with it.
$(TORCH_STAMP):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit(f"mag needs Python 3.10 or newer, and \
	$(PYTHON) is {sys.version.split()[0]}: name another, as in make PYTHON=python3.11 ...")'
	@echo 'Installing $(TORCH) into .venv: a download of 0.2 GB, or 1.5 GB with CUDA.'
	$(PYTHON) -m venv .venv
	rm -rf $(STAMPS)
	$(BIN)/pip uninstall --quiet --quiet --yes torch-scatter torch-sparse
	$(BIN)/pip install '$(TORCH)'
	mkdir $(STAMPS)
	touch $@

$(MAG_STAMP): setup.cfg $(TORCH_STAMP)
	@echo 'Installing mag and its requirements into .venv: about a minute.'
	$(BIN)/pip install --editable '.[examples]'
	touch $@

# The builds import torch, so they cannot be isolated from it. The one that uses ninja reads CFLAGS,
# the other CXXFLAGS only; debugging symbols, which -g0 leaves out, take a third of the time. pip
# knows a wheel that it built by the wheel's own version, whatever torch it was built against: hence
# a cache for each torch.
$(TEST_STAMP): setup.cfg $(MAG_STAMP)
	@echo 'Building torch-scatter and torch-sparse: 10 to 20 minutes on two cores, seconds from the cache.'
	$(BIN)/pip install setuptools wheel ninja
	CFLAGS='-g0' CXXFLAGS='-g0 -O3' MAX_JOBS=$(MAX_JOBS) $(BIN)/pip install --no-build-isolation \
		--cache-dir '$(CACHE)' --editable '.[sparse,test,benchmarks,text]'
	touch $@

$(LINT_STAMP): setup.cfg $(MAG_STAMP)
	$(BIN)/pip install setuptools wheel
	$(BIN)/pip install --no-build-isolation --editable '.[lint]'
	touch $@
