# `make` alone lists the commands.
PYTHON ?= python3
PRESET ?= laptop
REAL ?= datasets
# the presets real/ look for photographs here
export E2LIB_REAL := $(abspath $(REAL))
# each notebook would compile its imports anew, which takes as long as importing them
unexport PYTHONDONTWRITEBYTECODE
NOTEBOOKS ?=
DEVICE ?= auto
NAME ?=
RUNS ?=
SWEEP ?=
PROFILE ?=
JOBS ?= 0
python := .venv/bin/python
course := $(python) -m e2lib.course

.PHONY: help setup data run test lab notebooks results sweep bench site slides test-browser size

help:
	@echo "make run    execute the notebooks into runs/PRESET/; second time: only what is not done"
	@echo "            PRESET=smoke (seconds each) | laptop (default) | full (longer settings, and 04b to 10b: hours)"
	@echo "                   | paper (a GPU, the real data sets)"
	@echo "            PRESET=real REAL=FOLDER: photographs (VOC2007, Waterbirds-100, Imagenette, SUN) of a folder"
	@echo "            NOTEBOOKS=\"02 04b\" for some of them; DEVICE=auto (default) | cpu | cuda"
	@echo "make lab    open the notebooks in JupyterLab"
	@echo "make data   download a data set into datasets/: NAME=voc2007 | coco2014 | coco2017 | imagenette"
	@echo "make test   check everything: style, unit tests, notebooks in the smoke preset"
	@echo "make setup  only install, into .venv (PYTHON=python3.12 chooses the Python, 3.11 or newer)"
	@echo "make results    run the notebooks from 04 on with several seeds, write notebooks/results.md (hours)"
	@echo "                REAL=FOLDER for those on photographs; without them, their rows stay as they are"
	@echo "                RUNS=\"07 08\" for some of those in notebooks/sweeps/results.yaml"
	@echo "make sweep      run a grid: SWEEP=notebooks/sweeps/NAME.yaml; one job a GPU, or JOBS=2 at once; PROFILE=slurm"
	@echo "                make results SWEEP=... writes its numbers to runs/sweeps/NAME/results.csv"
	@echo "make bench      measure what guidance and distillation cost, and write the tables of docs/costs.md (20 minutes, nothing beside it)"
	@echo "make site       build the course site from the executed notebooks, into docs/_build/html"
	@echo "make slides     build a deck of slides for each lesson, into docs/_build/slides"
	@echo "make test-browser   open the site, and the widgets in JupyterLab, in Chromium (apt-get install chromium npm; minutes)"
	@echo "make size   count the lines of the library and of the course"
	@echo "make notebooks  execute in the laptop preset and store the outputs in notebooks/; bring README.md up to date"

setup: .venv/ready

# --no-compile: of twenty thousand files Python compiles those that it imports
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; ok = sys.version_info >= (3, 11); \
	  sys.exit(None if ok else 'Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Try: make setup PYTHON=python3.12' % sys.version_info[:2])"
	@test -x $(python) || { echo "Installing into .venv: about 8 GB, some minutes, once"; $(PYTHON) -m venv .venv; }
	$(python) -m pip install --no-compile --constraint constraints.txt --editable ".[course,test]"
	@touch $@

data: setup
	@$(python) data/download.py $(NAME)

run: setup
	@$(course) run --preset "$(PRESET)" --notebooks "$(NOTEBOOKS)" --device "$(DEVICE)"

# nbval executes those with cells tagged nbval-check-output again: these must show the same
test: setup
	$(python) -m ruff check
	$(python) -m ruff format --check
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 -m "not alone"
	$(python) -m pytest -m alone $(shell grep -rl mark.alone tests --include='*.py' --exclude-dir=browser)
	$(course) run --preset smoke
	OMP_NUM_THREADS=1 $(python) -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env $(patsubst notebooks/%,runs/smoke/%,$(shell grep -l nbval-check-output notebooks/*.ipynb))

lab: setup
	$(python) -m jupyterlab notebooks

notebooks: setup
	$(course) run
	$(course) publish
	$(python) docs/picture.py
	$(python) -m pytest tests/notebooks

results: setup
	$(if $(SWEEP),,-$(course) sweep notebooks/sweeps/results.yaml --runs "$(RUNS)" --jobs "$(JOBS)")
	$(course) results "$(or $(SWEEP),notebooks/sweeps/results.yaml)" --runs "$(RUNS)"

sweep: setup
	@$(course) sweep "$(SWEEP)" --runs "$(RUNS)" --profile "$(PROFILE)" --jobs "$(JOBS)"

# lines of Python; tests/test_structure.py holds the limits
size:
	@echo "library $$(find e2lib -name '*.py' -not -path 'e2lib/course/*' -exec cat {} + | wc -l), course $$(find e2lib/course -name '*.py' -exec cat {} + | wc -l)"

bench: setup
	$(python) -m tests.bench

.venv/site: .venv/ready
	$(python) -m pip install --no-compile --constraint constraints.txt --editable ".[site]"
	@touch $@

docs/node_modules/ready: docs/package-lock.json
	npm ci --prefix docs --ignore-scripts --no-audit --no-fund
	@touch $@

# -W, -n: every warning is an error, also a link that leads nowhere
site: .venv/site docs/node_modules/ready
	$(python) docs/assets.py
	cp docs/node_modules/@tensorflow/tfjs/dist/tf.fesm.min.js docs/_static/playground/made/tf.js
	$(python) -m sphinx -q -b html -W --keep-going -n -c docs -d docs/_build/doctrees . docs/_build/html

slides: .venv/site
	$(python) docs/slides.py

test-browser: site slides
	OMP_NUM_THREADS=1 $(python) -m pytest -n 3 --dist worksteal -m "not alone" tests/browser
	$(python) -m pytest -m alone tests/browser
