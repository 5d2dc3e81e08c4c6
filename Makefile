export OMP_NUM_THREADS ?= 1
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

test: .venv/ready
	$(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy datamodules objectives policies rollouts support

clean:
	rm -rf .venv build *.egg-info
