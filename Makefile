# SPDX-License-Identifier: Apache-2.0
#
#   make demo     a whole Swin-T over a photograph: parity, time per backend, and swin_fast_demo.png
#   make test     the tests
#   make check    make test, then the slow ones: sanitizers, planted bugs, toy benchmarks; and is the report stale?
#   make lint     ruff, mypy --strict, clang-format
#   make bench    a suite of benchmarks: an hour or two, on an otherwise idle machine
#   make report   benchmarks/REPORT.md, its plots and the table in README.md, from the results
#   make clean    removes what was built; .venv stays
#
# Each sets up what it needs in .venv, with the versions of constraints.txt, and builds the native library.
# VENV=none      uses the Python that is active, installs nothing and needs no network.
# PYTHON=python3.12  makes .venv with another Python, or, with VENV=none, is the Python used.
# ARGS="-k fuzz"     goes to pytest (test, check), to the demo or to the benchmark.

VENV ?= .venv
PYTHON ?= python3
# Not auto: who calls make wants to see why a build failed. none makes everything run on the reference.
export SWIN_FAST_BUILD ?= cpu
ifeq ($(SWIN_FAST_BUILD),cpu)
export SWIN_FAST_REQUIRE ?= cpu
endif

.PHONY: help demo test check lint bench report build clean
help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

ifeq ($(VENV),none)
PY := $(PYTHON)
# needs-<module>: stops where the active Python lacks it.
needs-%:
	@$(PY) -c "import importlib.util as u, sys; \
	sys.exit(None if u.find_spec('$*') else 'VENV=none: ' + sys.executable + ' has no $*')"
else
PY := $(VENV)/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)
needs-%: ;
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; \
	sys.exit(sys.version_info < (3, 10) and 'swin_fast needs Python 3.10 or newer; $(PYTHON) is ' + sys.version)"
	@$(PYTHON) -c "import venv, ensurepip" || { echo "$(PYTHON) cannot make a virtual environment: install its venv \
	module (Debian, Ubuntu: apt install python3-venv), or use the Python that is active: make ... VENV=none"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.with-build-tools: constraints.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing PyTorch and the build tools into $(VENV)"
	@$(PIP_INSTALL) torch numpy setuptools cmake ninja pybind11
	@touch $@

# $(VENV)/.with-<extra>: swin_fast itself, editable, with that extra of pyproject.toml.
$(VENV)/.with-%: $(VENV)/.with-build-tools | build
	@echo "Installing swin_fast[$*] into $(VENV)"
	@$(PIP_INSTALL) --no-build-isolation --editable ".[$*]"
	@touch $@

build: $(VENV)/.with-build-tools
demo: $(VENV)/.with-demo
test: $(VENV)/.with-test
check: $(VENV)/.with-test
lint: $(VENV)/.with-lint
bench: $(VENV)/.with-bench
report: $(VENV)/.with-bench
endif

# ninja knows what has changed, so this always runs; with nothing to do it takes half a second.
build: needs-torch needs-numpy needs-setuptools
	@$(PY) setup.py --quiet build_ext --inplace

demo: build
	$(PY) -m swin_fast demo $(ARGS)

# The tests run with one thread each, so that pytest-xdist, where it is installed, can share them among the cores; the
# slow ones by file, as what they build serves all of a file.
shared = $$($(PY) -c "import importlib.util as u; print('-n auto --dist $(1)' if u.find_spec('xdist') else '')")
test: needs-pytest needs-pytest_benchmark build
	$(PY) -m pytest $(call shared,worksteal) $(ARGS)

check: test
	$(PY) -m benchmarks.report --check
	$(PY) -m pytest -m slow $(call shared,loadfile) $(ARGS)

CPP = $$(find csrc tests/cpp tests/cusim benchmarks scripts -name '*.h' -o -name '*.cpp' -o -name '*.cu')
lint: needs-ruff needs-mypy needs-clang_format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	clang-format --dry-run -Werror $(CPP)
	@! grep -nE '.{121}' $(CPP) || { echo "longer than 120 characters, where clang-format cannot break"; exit 1; }

bench: needs-pytest needs-pytest_benchmark build
	$(PY) -m benchmarks.run $(ARGS)

report: needs-matplotlib
	$(PY) -m benchmarks.report

clean:
	rm -rf build dist swin_fast/lib swin_fast/_C.*.so *.egg-info
