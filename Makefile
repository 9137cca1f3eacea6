# Every target does its own set-up: `make demo` and `make test` work on a fresh machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions that CI tests; `make LOCK= <target>` takes the newest instead.
LOCK ?= requirements.lock
# Threads: one single-threaded process a core is the fastest arrangement that we measured (docs/results/log.md).
export OMP_NUM_THREADS ?= 1
# Tests start hundreds of Pythons, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# Memory in pages of 2 MB: up to twice as fast on a CPU (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_AUTH_MODE ?= token

.PHONY: help install lock demo test faults gpu soak check docs bench bench-serve doctor clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(VENV)/.installed ## make .venv and install tap_ray with what it needs

$(VENV)/.installed: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tap_ray needs Python >= 3.11; $$($(PYTHON) --version) came. Try: make PYTHON=python3.12 <target>"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "No venv module. Debian/Ubuntu: ask for the package python3-venv, or: pip install --user virtualenv && virtualenv $(VENV)"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(LOCK:%=-c %) -e '.[dev]'
	@touch $@

lock: ## write requirements.lock anew: the newest versions that pyproject.toml allows
	rm -rf $(VENV) && $(MAKE) LOCK= install
	{ head -1 requirements.lock; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > lock.new
	mv lock.new requirements.lock && touch $(VENV)/.installed

demo: install ## play -> pretrain -> align -> evaluate -> compare, small, on this machine
	$(BIN)/python -m jobs.pipeline --out demo

test: install ## all tests but long proofs, three files at a time, first those that start Ray
	RAY_worker_niceness=0 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=20 -m "not long_proof"

faults: install ## ten kills each of fleets, drivers, writers and training workers (make test: one), and all long proofs (1 to 2 h)
	KILLS=10 $(BIN)/python -m pytest -q -k "long_proof or killed"

gpu: install ## on one GPU: Stage 1 -> Stage 2 -> evaluation -> serving, and what training and play cost (not run yet)
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else f"make gpu needs an NVIDIA GPU and the CUDA build of torch; here is torch {torch.__version__}, which finds none (docs/how-to/large_models.md).")'
	RAY_worker_niceness=0 $(BIN)/python -m pytest -q -s -m gpu tests/gpu

soak: install ## two hours of play and training with something killed each minute; the same command continues
	RAY_worker_niceness=0 $(BIN)/python -m tests.distributed.soak

check: install docs ## ruff, pyright, import-linter, the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p tests/distributed
	$(BIN)/lint-imports

docs: install ## build the documentation into site/; a broken link ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: install ## our speed as ratios against bare loops and peers, on this machine
	$(BIN)/python -m bench.all

bench-serve: install ## robots' steps beside 80 hostile clients, against a quiet server; fails beyond twice its p99
	RAY_worker_niceness=0 $(BIN)/python -m bench.bench_hostile

doctor: install ## what this machine can do and what is missing
	$(BIN)/python -m tap_ray.doctor

clean: ## remove the environment and the demo's results (your runs/ and data/ stay)
	rm -rf $(VENV) demo site .pytest_cache .ruff_cache
