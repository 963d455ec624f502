# Two commands do everything on a fresh machine: `make quickstart` trains, `make test` runs the tests.
.PHONY: quickstart test install lint format clean
VENV := .venv/bin
# Processes that the tests run in.
JOBS ?= 2
# Threads that wait must not spin: on a busy machine they would stand in the way of those that work.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

install:
	@scripts/install.sh

.PHONY: install-dev
install-dev:
	@scripts/install.sh dev

quickstart: install
	$(VENV)/memfactory train configs/quickstart.yaml $(ARGS)

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

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
