# `make reproduce` goes from a bare machine to the paper's main table, `make test` from a bare machine to the tests.
#
#   TORCH_INDEX=<url> make reproduce    takes torch from another index, for example one of CPU builds
#   EXPERIMENTS=main,ablations make reproduce                          runs these grids of config.yaml in place of its choice
#   CORES=2 make reproduce                                             uses fewer cores than there are
#   OPTIONS="--configfile config/paper.yaml" make reproduce            passes options to snakemake

# The lock holds transformers 4.57; the model code also runs on 5, and `make test-transformers5` tests that.
TRANSFORMERS5 ?= 5.23.0

PYTHON ?= python3.11
VENV ?= .venv
CORES ?= all
OPTIONS ?=
TORCH_INDEX ?=
TEST_WORKERS ?= 2
DOWNLOAD ?=
ASSETS ?=
EXPERIMENTS ?=

# Of grids without the methods that need them these are empty; `dvc commit` wants the outputs of all its stages.
MAY_BE_EMPTY := results/adapters results/layers results/teacher results/world

BIN := $(VENV)/bin
# Names are separated by commas or by spaces.
COMMA := ,
SPACE := $(subst ,, )
NAMES := $(subst $(SPACE),$(COMMA),$(strip $(subst $(COMMA), ,$(EXPERIMENTS))))
# The main table runs before other grids. Not in the profile: Snakemake makes whatever it prefers, asked for or not.
FIRST := $(if $(filter main,$(subst $(COMMA), ,$(NAMES))),--prioritize results/tables/main.csv)
CHOSEN := $(if $(NAMES),--config 'experiments=[$(NAMES)]' $(FIRST))
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install demo reproduce show pdf check-data bench bench-gpu bench-data fetch-assets reference test test-transformers5 check format backbones schema readme lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        set up, and run one dataset, one backbone and five methods (40 seconds on two cores)"
	@echo "make reproduce   set up, run the workflow, print the main table and where everything is"
	@echo "make pdf         compile the tables by pdflatex into results/tables.pdf, or say what to install"
	@echo "make test        set up, lint and test (an end-to-end run of a small configuration included)"
	@echo "make check-data  are the data there and whole, and what will the configured experiments take (OPTIONS as above)"
	@echo "make bench       the engine against the loops that it replaces, into BENCHMARKS.md (ten minutes on two idle cores)"
	@echo "make bench-gpu   the same engine on random models of MedGemma-4B's and Lingshu-7B's shapes, on a GPU"
	@echo "make bench-data  time and memory of the readers on trees of the real sizes, into BENCHMARKS.md (13 minutes, 3 GB of disk)"
	@echo "make test-transformers5   the unit tests on transformers 5, in an environment of their own"
	@echo "make fetch-assets  say which weights of RadGraph and CheXbert it would download; DOWNLOAD=yes does it"
	@echo "make reference   pycocoevalcap and sacrebleu, which tests alone need, in a folder of their own"
	@echo "make check       lint and format checks only"
	@echo "make format      format Python and Snakemake files"
	@echo "make backbones   renew the tiny backbones that come with the project, after a change of their recipe or code (minutes)"
	@echo "make schema      write workflow/dive/resources/config.schema.json from the configuration's model"
	@echo "make readme      put rule graph, table, claims and costs of the last run into README.md and docs/results.md"
	@echo "make clean       remove the environment and all that was made, downloads aside"

# The stamps make a second call quick: the environment is brought up to date only when the lock has changed.
$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "$(PYTHON) is not on the PATH. Install Python 3.11 (e.g. apt install python3.11 python3.11-venv," >&2; \
	  echo "pyenv install 3.11, or uv python install 3.11), or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version), but requirements.lock is for Python 3.11." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: requirements.lock pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(VENV)/.installed

demo: install
	@dive demo --cores $(CORES)

reproduce: install
	snakemake --cores $(CORES) --no-hooks --logger dive $(CHOSEN) $(OPTIONS)
	@mkdir -p $(MAY_BE_EMPTY)
	@$(MAKE) --no-print-directory show

show: install
	@dive show $(NAMES) $(if $(OPTIONS),--options '$(OPTIONS)')

check-data: install
	@dive check-data $(if $(OPTIONS),--options '$(OPTIONS)')

bench: install
	python -m tests.benchmarks.engine --out BENCHMARKS.md

bench-gpu: install
	python -m tests.benchmarks.gpu --out BENCHMARKS.md

bench-data: install
	python -m tests.benchmarks.data --out BENCHMARKS.md

fetch-assets: install
	@dive fetch-assets $(if $(DOWNLOAD),--download) $(ASSETS)

pdf: install
	@python -m dive.reporting.latex results/tables

check: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules

format: install
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

# Reference packages of the tests, apart from the environment (see tests/reference.lock).
$(VENV)/.reference: tests/reference.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/reference --requirement tests/reference.lock
	@touch $@

reference: $(VENV)/.reference

test: install check reference
	OMP_NUM_THREADS=1 python -m pytest -q -n $(TEST_WORKERS) --dist loadfile --durations=10

VENV5 := $(VENV)-transformers5

$(VENV5)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV5)
	grep -v -E '^(transformers|tokenizers|huggingface_hub)==' requirements.lock > $(VENV5)/requirements.txt
	$(VENV5)/bin/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --requirement $(VENV5)/requirements.txt transformers==$(TRANSFORMERS5)
	$(VENV5)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# The packages of the ignored tests need transformers 4.
test-transformers5: $(VENV5)/.installed
	OMP_NUM_THREADS=1 $(VENV5)/bin/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile tests/unit \
	  --ignore tests/unit/test_chexbert.py --ignore tests/unit/test_radgraph.py --ignore tests/unit/test_radgraph_annotator.py \
	  --deselect tests/unit/test_scores_command.py::test_models_are_used_where_their_weights_are_given

backbones: install
	OMP_NUM_THREADS=1 python -m dive.backbones.ship

schema: install
	python -m dive.config > workflow/dive/resources/config.schema.json

readme: install
	snakemake --rulegraph mermaid-js | python -m dive.reporting.readme results $(or $(EXPERIMENTS),main) README.md docs/results.md

lock: install
	{ grep '^#' requirements.lock; python -m pip freeze --all --exclude-editable \
	  | grep -v -i '^\(pip\|dive\)[ =@]' | sed 's/^\(torch==[^+]*\)+.*/\1/'; } > .requirements.tmp
	mv .requirements.tmp requirements.lock

clean:
	rm -rf $(VENV) $(VENV5) .snakemake data/synthetic-* data/truth models results logs benchmarks
