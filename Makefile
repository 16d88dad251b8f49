# What a person types. `make` alone lists it.
#   PYTHON=/path/to/python3   the Python for a new .venv (default: the newest of 3.13, 3.12, 3.11 that works)
#   ARGS="--no-browser"       further arguments: for JupyterLab (lab, edit), pytest (test), the tool (check, notebooks)
#   JOBS=1                    tests one after the other (default: two side by side, a file each)

PY := .venv/bin/python
ARGS ?=
JOBS ?= 2
# Lessons and tests run without a network, on one thread: sums then come out in one order, to the bit, and a machine
# that is busy elsewhere does not stall them (two threads on two busy cores made a step many times slower).
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}

.DEFAULT_GOAL := help
.PHONY: help lab edit quickstart test test-full check export notebooks bench chaos setup-lab setup-dev

help:
	@sed -n 's/^\([a-z-]*\): .*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || grep '##' $(MAKEFILE_LIST)

setup-lab:
	@tools/setup.sh lab

setup-dev:
	@tools/setup.sh dev

lab: setup-lab ## open JupyterLab on your copy of the lessons (lessons/)
	@$(PY) -m tools.lab $(ARGS)

edit: setup-lab ## open JupyterLab on the sources; saving a notebook updates its .py
	@$(PY) -m tools.lab --edit $(ARGS)

quickstart: setup-lab ## run the quickstart here, without a browser
	@$(OFFLINE) $(PY) -m tools.quickstart

check: setup-dev ## do lessons, notebooks, modules, imports, settings, style and types agree?
	@$(PY) -m tools.check $(ARGS)

test: setup-dev ## what CI runs: the checks, the tests, all lessons
	@failed=0; \
	$(PY) -m tools.check || failed=1; \
	$(OFFLINE) $(PY) -m pytest tests nbs --nbmake --nbmake-timeout=180 --durations=15 -n $(JOBS) --dist loadfile $(ARGS) || failed=$$((failed + 2)); \
	case $$failed in 1|3) echo "make check failed: see above.";; esac; \
	exit $$failed

test-full: setup-dev ## the same with the slow tests
	@$(MAKE) --no-print-directory test ARGS='-m "slow or not slow" $(ARGS)'

export: setup-dev ## write ftnb/ from the lessons
	@$(PY) -m tools.export $(ARGS)

notebooks: setup-dev ## run the lessons whose outputs are stale, and store what they show
	@$(PY) -m tools.export
	@$(PY) -m tools.notebooks $(ARGS)

bench: setup-dev ## the engine beside others: figures into tests/bench/bench.json (ARGS="--part overhead")
	@$(OFFLINE) $(PY) -m tests.bench $(ARGS)

chaos: setup-dev ## what a training survives: cut power, full disks, killed processes, spoilt files
	@$(OFFLINE) $(PY) -m tests.chaos $(ARGS)
