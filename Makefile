# make figures: the study on the embedded lab. make test: every check that CI runs. Both set up .venv first if need be.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: figures test check unit wheel format clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

figures: .venv/ready
	$(BIN)/python -m vit_analysis.figures --out figures

test: check unit wheel

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: .venv/ready
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbmake notebooks

# A wheel, alone in an empty environment, must run the main job: the lab's weights are inside it.
wheel: .venv/ready
	$(BIN)/python tests/wheel.py

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv dist build
