# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/.installed

SIZE ?= 400
SEED ?= 1

.PHONY: install demo test race mutants check format lint types clean

install: $(STAMP)
	@$(BIN)/mediant models fetch smollm2-135m

# Torch goes first and is held: a resolver left alone would take the newest build with its GPU libraries.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > .venv/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable ".[dev]"
	touch $(STAMP)

demo: install
	@rm -rf runs/demo
	@$(BIN)/mediant run activation-patching --preset bundled --out runs/demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The peers bring their own dependencies, so they get an environment of their own. None of them needs torchvision, whose
# presence beside a CPU-only torch breaks imports.
.venv-race/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-race
	.venv-race/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > .venv-race/constraints.txt
	.venv-race/bin/python -m pip install --quiet --constraint .venv-race/constraints.txt --editable ".[bench]"
	touch .venv-race/.installed

race: .venv-race/.installed
	@.venv-race/bin/mediant models fetch smollm2-135m
	OMP_NUM_THREADS=1 .venv-race/bin/python -m benchmarks.race

check: install lint types test

lint:
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks

types:
	$(BIN)/mypy

# Hours, and it resumes: MUTANTS="--again" tries survivors again, MUTANTS="--rooms core measures" takes two rooms only.
mutants: install
	@$(BIN)/python -m pip install --quiet --constraint .venv/constraints.txt --editable ".[dev,mutation]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants --size $(SIZE) --seed $(SEED) $(MUTANTS)

format:
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

clean:
	rm -rf .venv .venv-race runs .pytest_cache .mypy_cache .ruff_cache
