.PHONY: install test lint format bench demo

SOURCES = $(shell git ls-files '*.h' '*.cuh' '*.cpp' '*.cu')

install:
	pip install -e ".[dev]"

test:
	pytest -n auto --dist worksteal

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(SOURCES)

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(SOURCES)

bench:
	python -m bench

demo:
	python train.py
