# Needs Python 3.11 or newer and make, nothing else. The first call creates .venv and says what it downloads.
#   make lab PYTHON=python3.12      choose the Python that .venv is made with
#   make lab PIP_ARGS="..."         more options for pip, such as another package index

PYTHON ?= python3
PIP_ARGS ?=
LAB_ARGS ?=
TEST_ARGS ?=
RECORD ?=

VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help lab test test-older-cpus peers record table bench check-env student book serve
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: $(READY) ## open the lessons in JupyterLab; a page double-clicked is a notebook (LAB_ARGS="--no-browser --port=9000")
	@echo "JupyterLab opens in your browser; the address is printed below. Ctrl-C twice ends it."
	$(BIN)/python -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/lessons/index.md \
		--LabApp.workspaces_dir="$(CURDIR)/$(VENV)/workspaces" $(AS_ROOT) $(LAB_ARGS)

test: $(READY) ## run every test, the lessons among them (TEST_ARGS="-k grid")
	$(BIN)/python -m pytest $(TEST_ARGS)

test-older-cpus: $(READY) ## run what depends on the CPU again, as CPUs without AVX-512 and VNNI do (TEST_ARGS="-k layers")
	$(BIN)/python tests/older_cpus.py $(TEST_ARGS)

peers: $(PEERS)/ready ## hold files and layers against the libraries people use, in an environment of their own (TEST_ARGS="-k gptq")
	-@$(PEERS)/bin/python -c 'from quantlib.measure.llama_cpp import install; install()'
	$(PEERS)/bin/python -m pytest tests/peers $(TEST_ARGS)

record: $(READY) ## run the slow experiments that are out of date and record what pages print (RECORD=part_01)
	$(BIN)/python -m quantlib record $(if $(RECORD),"$(RECORD)")

table: $(READY) ## measure every row of part 7's table that is missing or stale (hours, if all), and print it
	$(BIN)/python -m quantlib record part_07.quality part_07.on_stories part_07.tasks part_07.references part_07.llama_cpp
	$(BIN)/python -m quantlib table

bench: $(READY) ## build the compiled kernel if a compiler is there, time every kernel on this machine, record it
	-$(BIN)/python -m quantlib build
	$(BIN)/python -m quantlib record part_02.speed part_02.speed_on_gpu part_03.speed part_02.decoding part_02.writing \
		part_07.reading part_07.on_gpu
	$(BIN)/python -m quantlib bench

check-env: $(READY) ## say what this machine has of what the lessons need, and what to do about the rest
	@$(BIN)/python -m quantlib check-env

student: $(READY) ## write the pages as notebooks without the exercises' solutions, into _build/student
	$(BIN)/python -m quantlib student

book: $(READY) ## build the static site in _build/book
	$(BIN)/python site/build.py

serve: $(READY) ## show the built site at a local address
	$(BIN)/python site/serve.py

# Jupyter refuses to run as root unless told; in a container root is the only user.
AS_ROOT = $(shell [ "$$(id -u)" != 0 ] || echo --allow-root)

# CUDA comes with torch on Linux only. The sizes were read off pip's log for Python 3.12 on x86-64.
define DOWNLOAD_Linux
echo "Download: 3 GB, or 0.7 GB where pip finds a torch without CUDA; on disk 6 GB, or 3 GB."
echo "To ask for the small one, stop here (Ctrl-C) and run"
echo "    make $(or $(firstword $(MAKECMDGOALS)),lab) PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'"
endef
DOWNLOAD_other = echo "Download: about 0.5 GB; on disk 2 GB."

# Not ready until everything is installed: an interrupted installation goes on at the next call.
$(READY): requirements.txt constraints.txt pyproject.toml $(wildcard .jupyter/*.json)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "Python 3.11 or newer is needed and '$(PYTHON)' was not found: install it, or name yours with PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; \
		v >= (3, 11) or sys.exit("Python 3.11 or newer is needed and $(PYTHON) is %d.%d: name another, as in PYTHON=python3.11" % v[:2]); \
		v < (3, 14) or print("Python %d.%d is newer than the 3.11 to 3.13 that this is tested with; if pip finds no package for it, use PYTHON=python3.13" % v[:2])'
	@"$(PYTHON)" -c 'import ensurepip, venv' || { \
		echo "This Python lacks its venv module: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) from requirements.txt; this happens once."
	@$(if $(filter Linux,$(shell uname -s)),$(DOWNLOAD_Linux),$(DOWNLOAD_other))
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements.txt -e .
	@touch $@

# The peers share the packages of .venv, torch among them, by a path; theirs go before.
$(PEERS)/ready: peers.txt $(READY)
	@echo "Setting up $(PEERS) from peers.txt; this happens once."
	$(BIN)/python -m venv $(PEERS)
	@for path in "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$(CURDIR)"; do echo "$$path"; done \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	$(PEERS)/bin/python -m pip install $(PIP_ARGS) --no-deps -r peers.txt
	@touch $@
