# make demo: the whole method on a toy, in minutes on a laptop. make test: what CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# large pages for large arrays: a tenth to a quarter less time on a CPU (glibc only, ignored elsewhere)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test lint clean

demo: $(VENV)/.core
	$(BIN)/python -m launch.pipeline --config=configs/toy/demo.py --workdir=runs/demo

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	# the other implementation of FID; its torchvision is for data sets that no test opens
	$(BIN)/python -m pip install --quiet --no-deps torch-fidelity==0.3.0
	@touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) runs/demo
