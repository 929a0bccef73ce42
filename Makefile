# The project's commands. Each sets up .venv on its first use; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

LOWEST := .venv-lowest
LOWEST_TORCH := $(shell sed -nE 's/^dependencies = \["torch>=([0-9.]+)"\]$$/\1/p' pyproject.toml)

.PHONY: help setup pretrain figures test test-slow test-lowest test-peers test-models test-browser lint format docs wheel clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## install everything for recipes, tests, docs and lint into .venv

# The stamp is written last: an installation that failed is tried again, one that succeeded is not repeated.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, \
	$(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12 ...")'
	@echo "setup: environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup: $(TORCH) (a large download the first time)"
	@$(PIP) $(TORCH)
	@echo "setup: the package, and what recipes, tests, docs and lint need"
	@$(PIP) --editable '.[recipes,test,docs,lint]'
	@touch $@
	@echo "setup: done"

pretrain: $(STAMP)  ## the demo: train plainly, and on clips that a few labels have cleaned; ARGS="key=value ..."
	@$(BIN)/python -m recipes.demo $(ARGS)

figures: $(STAMP)  ## the figures of the paper's supplement, at a scale of minutes, in runs/figures
	@$(BIN)/python -m recipes.research.reproduce $(ARGS)

test: $(STAMP)  ## all fast tests; ARGS="-k name" narrows them
	@$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## the slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

# What pyproject.toml promises, in an environment of its own. torch brings its own needs, so that constraints.txt counts for the
# rest alone. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets the small build for CPUs.
test-lowest: $(LOWEST)/.installed  ## the library's fast tests on the lowest torch that it promises, in .venv-lowest
	@$(LOWEST)/bin/python -m pytest -n 2 -m "not slow" src/harmony tests/harmony --ignore tests/harmony/third_party $(ARGS)

$(LOWEST)/.installed: pyproject.toml constraints.txt
	@echo "test-lowest: torch $(LOWEST_TORCH) in $(LOWEST) (a large download the first time)"
	@$(PYTHON) -m venv $(LOWEST)
	@grep -vE '^(torch|setuptools)==' constraints.txt > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -m pip --disable-pip-version-check install -qq --constraint $(LOWEST)/constraints.txt \
	'torch==$(LOWEST_TORCH).*' numpy safetensors --editable '.[test]'
	@touch $@

test-peers: $(STAMP)  ## the realignments against those of TorchJD, which it installs with its solvers
	@$(PIP) --editable '.[benchmark]'
	@$(BIN)/python -m pytest tests/harmony/test_realign_peer.py $(ARGS)

# What asks for torchvision comes without its dependencies: the build on PyPI wants CUDA, and must not bring another torch.
test-models: $(STAMP)  ## every engine on unchanged models of eight packages, which it installs
	@$(PIP) --editable '.[models]'
	@$(PIP) --no-deps timm torchvision vit-pytorch
	@$(BIN)/python -m pytest -n 2 tests/harmony/third_party $(ARGS)

test-browser: $(STAMP)  ## the gallery and the labelling page in the chromium that is installed, driven by playwright, which it installs
	@$(PIP) --editable '.[browser]'
	@$(BIN)/python -m pytest tests/recipes/test_gallery_browser.py tests/recipes/test_label_browser.py $(ARGS)

lint: $(STAMP)  ## ruff and mypy, nothing is changed
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: ruff format"
	@$(BIN)/ruff format --check .
	@echo "lint: mypy --strict"
	@$(BIN)/mypy

format: $(STAMP)  ## sort imports, fix what ruff can fix, format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(STAMP)  ## build the site into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: open site/index.html"

wheel: $(STAMP)  ## build the wheel into dist/ and check that it holds harmony alone
	@rm -rf dist
	@$(BIN)/python -m pip --disable-pip-version-check wheel -qq --no-deps --wheel-dir dist .
	@$(BIN)/python -c "import glob, zipfile; [wheel] = glob.glob('dist/*.whl'); \
	names = zipfile.ZipFile(wheel).namelist(); \
	strays = [n for n in names if not n.startswith(('harmony/', 'gradient_harmony-'))]; \
	assert not strays, f'{wheel} holds more than harmony: {strays}'; \
	assert 'harmony/py.typed' in names, f'{wheel} lacks harmony/py.typed'; \
	print('wheel:', wheel, len(names), 'files')"

clean:  ## remove .venv and .venv-lowest, builds and caches; runs/ and corpora/ stay
	rm -rf $(VENV) $(LOWEST) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
