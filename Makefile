# Two commands do everything on a fresh machine: `make quickstart` trains, `make test` runs the tests.
# `make showcase` trains a real pretrained model on real text (docs/benchmarks/smollm2.md).
.PHONY: quickstart showcase test install install-dev lint format docs clean
VENV := .venv/bin
# Processes that run the tests.
JOBS ?= 2
# Threads that wait sleep instead of spinning, which would slow the others down on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

install:
	@scripts/install.sh

install-dev:
	@scripts/install.sh dev

quickstart: install
	$(VENV)/memfactory train configs/quickstart.yaml $(ARGS)

# A second call goes on where the first was stopped. RUNG is 1, hard, 2 or 3.
RUNG ?= 1
SEED ?= 0
showcase:
	@scripts/install.sh gguf
	$(VENV)/python scripts/showcase.py --rung $(RUNG) --seed $(SEED) $(ARGS)

test: install-dev
	$(VENV)/python -m ruff check src tests scripts benchmarks
	$(VENV)/python -m ruff format --check src tests scripts benchmarks
	$(VENV)/python -m mypy
	$(VENV)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: install-dev
	$(VENV)/python -m ruff check src tests scripts benchmarks
	$(VENV)/python -m mypy

format: install-dev
	$(VENV)/python -m ruff check --fix src tests scripts benchmarks
	$(VENV)/python -m ruff format src tests scripts benchmarks

# The site needs no torch, so it has an environment of its own.
docs:
	[ -x .venv-docs/bin/mkdocs ] || { python3 -m venv .venv-docs && .venv-docs/bin/python -m pip install -q -r requirements/docs.txt; }
	.venv-docs/bin/mkdocs build --strict $(ARGS)

clean:
	rm -rf .venv .venv-docs site .pytest_cache .mypy_cache .ruff_cache .hypothesis
