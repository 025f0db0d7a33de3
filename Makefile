# `make help` lists the targets. Two matter to a reader: `make book` and `make test`.

PYTHON ?= python3
PORT   ?= 8000
JOBS   ?= 2
OUT    ?= _build/screenshots

VENV      := .venv
BIN       := $(VENV)/bin
READY     := $(VENV)/.ready
NOTEBOOKS := $(sort $(wildcard book/*.ipynb))
ifneq ($(shell uname -s),Linux)  # Triton, whose kernel chapter 9 runs, is for Linux only
NOTEBOOKS := $(filter-out book/09_%,$(NOTEBOOKS))
endif
RESULTS   := _build/results
NBVAL     := -m pytest --nbval --nbval-current-env

# A font cache of our own, filled before a notebook runs: matplotlib writes about a cache that it
# has to build, or shares with another version of itself, into the outputs.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
FONTS := -c 'import matplotlib.font_manager'

.DEFAULT_GOAL := help
.PHONY: help venv book serve test claims lint test-package test-notebooks test-site test-gpu \
        test-here test-elsewhere gpu-report notebooks experiments mutants screenshots repository \
        bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## set up .venv with everything that building and testing needs

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1`." \
	       "Name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "== Setting up $(VENV); the first time this takes a minute or more"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python $(FONTS)
	@touch $@

book: $(READY) ## build the site into _build/html
	@echo "== Building the site"
	@rm -rf _build/html  # no page may outlive its source
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo
	@echo "The book is built. Open file://$(CURDIR)/_build/html/index.html or run: make serve"

serve: book ## build the site and serve it on this machine
	@echo "== http://127.0.0.1:$(PORT)/ (Ctrl-C stops it)"
	$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: $(READY) ## run everything: lint, package, notebooks, site
	@rm -rf $(RESULTS)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-package
	@$(MAKE) --no-print-directory test-notebooks
	@$(MAKE) --no-print-directory test-site
	@$(BIN)/python tools/summary.py $(RESULTS)

claims: $(READY) ## count the sentences that the ledger tries, page by page
	@$(BIN)/python -m tests.claims

lint: $(READY) ## check style and format, notebooks too, and the types of the core
	@echo "== Lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

test-package: $(READY) ## test the package, its doctests and the notebooks as files
	@echo "== Package"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --ignore=tests/site \
	  --junitxml=$(RESULTS)/package.xml

test-notebooks: $(READY) ## run every notebook and compare it with its stored outputs
	@echo "== Notebooks"
	@test -n "$(NOTEBOOKS)" || { echo "no notebook in book/" >&2; exit 1; }
	$(BIN)/python $(NBVAL) -n $(JOBS) --dist loadfile --junitxml=$(RESULTS)/notebooks.xml $(NOTEBOOKS)

test-site: book ## build the site and read it in a headless Chromium
	@echo "== Site"
	$(BIN)/python -m pytest tests/site --junitxml=$(RESULTS)/site.xml

test-elsewhere: $(READY) ## package and notebooks as on other CPUs, thread counts; ON= picks some
	@echo "== Elsewhere"
	$(BIN)/python tools/elsewhere.py $(ON)

test-here: ## package and notebooks in the environment of PYTHON= as it is (Colab, a lab's machine)
	$(PYTHON) tools/elsewhere.py --pytest "-W default" here

gpu-report: ## all that a GPU has to show, in 8 minutes, into OUT=; for PYTHON= as it is
	$(PYTHON) tools/gpu_report.py $(if $(TUTORIAL),--tutorial $(TUTORIAL)) \
	  $(if $(filter command line,$(origin OUT)),$(OUT))

test-gpu: MPLCONFIGDIR := $(CURDIR)/_build/matplotlib
test-gpu: ## test on CUDA, in the environment of PYTHON= as it is; fails without CUDA
	@echo "== CUDA"
	MHA_TUTOR_REQUIRE_GPU=1 $(PYTHON) -m pytest -m gpu tests
	@if $(PYTHON) -c 'import nbval' 2>/dev/null; then \
	  echo "== Notebooks on CUDA"; $(PYTHON) $(FONTS); MHA_TUTOR_DEVICE=cuda $(PYTHON) $(NBVAL) $(NOTEBOOKS); \
	else echo "nbval is not installed for $(PYTHON): the notebooks were not run on CUDA"; fi

notebooks: $(READY) ## run every notebook again, in place, with normalized metadata
	@echo "== Running the notebooks"
	$(BIN)/jupyter nbconvert --config tools/nbconvert_config.py $(NOTEBOOKS)
	$(BIN)/python tools/readme_picture.py
	$(BIN)/python tools/layer_picture.py

experiments: $(READY) ## train the digits sweep of chapter 7 again; takes some minutes
	$(BIN)/python -m mha_tutor.experiments.digits

screenshots: book ## picture every page (desktop and phone, light and dark) into OUT=
	$(BIN)/python tools/screenshots.py $(OUT)

repository: $(READY) ## make URL= the project's home, everywhere it is said
	$(BIN)/python tools/repository.py "$(URL)"

bench: $(READY) ## measure the backends, then the layer against its parts; prints tables
	$(BIN)/python -m mha_tutor.benchmark backends
	$(BIN)/python -m mha_tutor.benchmark layers

mutants: $(READY) ## put the contract to the test in full; writes book/data/contract.json
	$(BIN)/python -m mha_tutor.contract.trial book/data/contract.json --jobs $(JOBS) \
	  --unseen tests/unseen_bugs.py --unseen tests/unseen_bugs_two.py --unseen tests/unseen_bugs_three.py

clean: ## remove what was built, .venv included
	rm -rf $(VENV) _build
