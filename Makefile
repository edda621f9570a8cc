# make figures: the study on the embedded lab, into runs/figures. make test: every check that CI runs. make fast: what a developer
# runs after each change. All set up .venv first if need be.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in as many processes as there are cores, with one thread each: two threads of tiny products wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: figures gallery test fast check unit notebooks docs wheel oldest slow format hooks clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

figures: .venv/ready
	$(BIN)/python -m vit_analysis.figures

# The same into figures/, whose pictures and verdicts are part of the repository.
gallery: .venv/ready
	$(BIN)/python -m vit_analysis.figures --out figures

# Lint, notebooks, documentation and wheel are one process each, and run beside the tests.
test: .venv/ready
	$(MAKE) --jobs 2 check unit notebooks docs wheel

# Lint, floors, types, and the tests that are not slow.
fast: check
	$(PYTEST) -m "not slow" --quiet

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

unit: .venv/ready
	$(PYTEST)

notebooks: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake notebooks

# The documentation, as files in site/; a link that leads nowhere or a docstring that cannot be read is an error (not with --quiet).
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# A wheel, alone in an empty environment, must run the main job: the lab's weights are inside it.
wheel: .venv/ready
	$(BIN)/python tests/wheel.py

# The tests again with the oldest Python and the oldest packages that pyproject.toml promises.
oldest:
	python3.11 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	python3.11 tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable . --group test
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# Measure every test and write tests/slow.txt, by which `make fast` leaves out the slow ones.
slow: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --write-slow

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Let git run the quick half of the checks before each commit.
hooks: .venv/ready
	$(BIN)/pre-commit install

clean:
	rm -rf .venv .venv-oldest dist build
