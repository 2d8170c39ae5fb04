# make chat       set up .venv, build, and start chatting with the built-in model
# make test       set up .venv-dev and run every check of the default tier
# make test-full  the same plus sanitizers and the long tiers
# make reliability  every attack on files, downloads and the store, as a table
# make bench      speed of the built-in model and of three well-known shapes on this machine
PYTHON ?= python3
VENV := .venv
DEV := .venv-dev
SOURCES := pyproject.toml $(shell find app runtime kernels assets -type f \
	-not -path '*/__pycache__/*' -not -name '*.so' 2>/dev/null)

.PHONY: chat test test-full reliability bench format clean

chat: $(VENV)/.installed
	@$(VENV)/bin/qh-chat

bench: $(VENV)/.installed
	@$(VENV)/bin/qh-chat bench

test: $(DEV)/.installed
	@$(DEV)/bin/python tests/run.py

test-full: $(DEV)/.installed
	@$(DEV)/bin/python tests/run.py --full

reliability: $(DEV)/.installed
	@$(DEV)/bin/python tests/reliability.py

format: $(DEV)/.installed
	@$(DEV)/bin/ruff check --fix app runtime kernels tests
	@$(DEV)/bin/ruff format app runtime kernels tests
	@$(DEV)/bin/clang-format -i $$(git ls-files '*.h' '*.cpp')

$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "qh-chat needs Python 3.11 or newer; found $$($(PYTHON) --version). Set PYTHON=..." >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Building qh-chat (about a minute the first time) ..."
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

# The package is installed in place, so edits to Python files need no new build.
$(DEV)/.installed: pyproject.toml $(shell find kernels -type f \( -name '*.cpp' -o -name '*.h' -o -name CMakeLists.txt \))
	@test -x $(DEV)/bin/python || $(PYTHON) -m venv $(DEV)
	@$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	@$(DEV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

clean:
	rm -rf build dist $(VENV) $(DEV)
