# make demo | test | lint | bench ...: each sets up what it needs in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Set THREADS to use fewer cores than the machine has.
THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo demo-fast reproduce test test-slow families lint bench aot gpu-check gpu-pack parity sanitize cuda-check torch-check wheel wheel-check \
  python-check licences workflows sbom pictures notebooks web web-check site site-check chromium browse-check setup setup-release clean

setup: $(VENV)/.installed

# torch is installed first, so that nothing else pulls in another one. No build isolation, for the same reason.
$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(shell find csrc -type f 2>/dev/null)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt setuptools setuptools-scm wheel ninja torch
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev,site,notebooks]"
	touch $@

# Beside it what builds and describes a release: an extra of what is installed, which is not built again.
setup-release: $(VENV)/.installed-release

$(VENV)/.installed-release: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt "tide-sae[release]"
	touch $@

demo: setup
	OMP_NUM_THREADS=$(THREADS) $(BIN)/tide demo --out runs/demo

demo-fast: setup
	OMP_NUM_THREADS=$(THREADS) $(BIN)/tide demo --fast --out runs/demo-fast

# Executes docs/notebooks/*.py; WRITE=1 keeps the notebooks with their outputs beside them.
notebooks: setup
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python scripts/notebooks.py $(NAMES) $(if $(WRITE),--write)

# The paper's tables and figures: hours. Rerun it to resume; its results are kept in benchmarks/results.
STUDIES ?= fig1 table1 fig4 fig5 fig6 where bank safety ablation centring
reproduce: setup
	set -e; for study in $(STUDIES); do \
	  OMP_NUM_THREADS=$(THREADS) $(BIN)/tide reproduce $$study --threads $(THREADS); \
	  mkdir -p benchmarks/results/$$study; \
	  cp runs/reproduce/$$study/*.json runs/reproduce/$$study/*.csv runs/reproduce/$$study/*.png benchmarks/results/$$study/; \
	done

# A pipeline of real pictures, named emoji of a package of npm: hours; docs/real-pictures.md. Rerun it to resume.
EMOJI := emoji-datasource-google-16.0.0
# glibc keeps what is freed, in large pages. By itself it gives it back, and clearing it anew at its next use costs
# this training time. Other systems pass this over.
KEPT := MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8589934592 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
pictures: setup
	mkdir -p runs/pictures
	test -f runs/pictures/$(EMOJI).tgz || npm pack --silent --pack-destination runs/pictures emoji-datasource-google@16.0.0
	test -f runs/pictures/data/held-out/metadata.jsonl || \
	$(BIN)/python scripts/emoji_pictures.py runs/pictures/data --package runs/pictures/$(EMOJI).tgz
	$(KEPT) OMP_NUM_THREADS=$(THREADS) $(BIN)/python scripts/train_pictures.py --data runs/pictures/data/train \
	  --work runs/pictures --out runs/pictures/final

# A process for each core, of one thread each; one that is done takes tests from the others.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(THREADS) --dist worksteal

test-slow: setup families
	$(BIN)/python -m pytest -m slow --deselect tests/adapters/test_families.py --deselect tests/adapters/test_families_changed.py

# All tests of all model families; their outcomes are recorded in benchmarks/results and in docs/adapters.md.
families: setup
	OMP_NUM_THREADS=1 $(BIN)/python scripts/families_report.py --processes $(THREADS)
	$(BIN)/python scripts/families_table.py --write

# The peers are an extra: $(BIN)/pip install --constraint constraints.txt --no-build-isolation ".[bench]"
bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

# Every kernel for every architecture, without a GPU, against the committed figures of this version of Triton.
aot: setup
	env -u TRITON_INTERPRET $(BIN)/python -m benchmarks.aot --processes $(THREADS)

# On a GPU machine, with the Python that holds its torch: nothing is installed or fetched (docs/gpu.md).
MINUTES ?= 9
PLAN ?= all
gpu-check:
	@$(PYTHON) -c 'import torch' 2>/dev/null || { echo "$(PYTHON) has no torch: name one that has it, make gpu-check PYTHON=..."; exit 2; }
	$(PYTHON) -m benchmarks.gpu_check --minutes $(MINUTES) --plan $(PLAN) $(if $(TIDE_RESULTS),--out $(TIDE_RESULTS)) $(OPTIONS)

# What a GPU machine without network needs beside the tree, below build/gpu-pack; there: bash build/gpu-pack/install.sh
gpu-pack: setup
	$(BIN)/python csrc/gpu_pack.py

# Conversion beside the other libraries' own code, in an environment that sees what .venv holds. The last two bring
# their versions of what is here already, and torchvision, which does not load beside a CPU build of torch: of what they
# ask for only what they import is installed.
PARITY ?= .venv-parity
parity: $(PARITY)/.installed
	OMP_NUM_THREADS=1 TIDE_PARITY=1 $(PARITY)/bin/python -m pytest -m parity tests/conversion

$(PARITY)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(PARITY)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$($(PARITY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parity.pth
	$(PARITY)/bin/pip install --quiet --constraint constraints.txt sae-lens eai-sparsify scikit-learn zstandard "python-socketio[client]"
	$(PARITY)/bin/pip install --quiet --constraint constraints.txt --no-deps dictionary-learning nnsight overcomplete
	touch $@

# The compiled CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: setup
	PYTHON=$(BIN)/python csrc/sanitize.sh

# The CUDA sources through nvcc: no GPU needed, no register may spill.
cuda-check: setup
	$(BIN)/python csrc/check_cuda.py

# csrc/ with the headers of the oldest and of the newest torch; they are fetched once.
torch-check: setup
	$(BIN)/python csrc/check_torch_versions.py

# The source distribution and the wheels, into dist/: with the compiled CPU kernels, and without for any platform.
wheel: setup-release
	rm -rf dist
	$(BIN)/python scripts/build_wheels.py --out dist

# Built again in another folder they are the same bytes; installed where there is no compiler the kernels serve.
wheel-check: wheel
	$(BIN)/python scripts/check_wheels.py dist

# The wheel of dist/ and these tests with other versions of Python, as far as they are installed. Each gets a fresh
# environment; what has torch lends it, else pip installs one (PIP_EXTRA_INDEX_URL may name the place of the CPU builds).
PYTHONS ?= python3.11 python3.12 python3.13
TESTS ?= tests/kernels tests/sae tests/training
python-check:
	$(PYTHON) scripts/check_pythons.py dist --pythons $(PYTHONS) --tests $(TESTS) $(if $(TORCH),--torch $(TORCH))

# The licences of everything that the package needs, against the list in pyproject.toml.
licences: setup-release
	$(BIN)/python scripts/dependencies.py licences

# The workflows of GitHub against their schema, and for what could be abused in them.
workflows: setup-release
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --config .github/zizmor.yml .github

# What a release is made of, as CycloneDX, into dist/.
sbom: setup-release
	$(BIN)/python scripts/dependencies.py sbom --out dist

# The page of `tide browse`, from web/ into tide/browser/static/, which is committed: installing needs no Node.
web:
	cd web && npm ci --silent --no-audit --no-fund && npm run --silent check && npm run --silent build

# Fails where the committed page is not what its source makes.
web-check:
	@if command -v npm >/dev/null; then $(MAKE) web && git diff --exit-code --stat tide/browser/static; \
	else echo "npm is not installed: the page of tide browse is not built again"; fi

# The documentation site, into build/site: the pages of docs/, the commands' help, a reference from docstrings.
site: setup
	$(BIN)/python -m website.build

# Every link and anchor of the built site, and that it loads nothing from elsewhere.
site-check: site
	$(BIN)/python -m website.check

# The browser of the pages' tests and bars: Debian's where this may install packages, else Playwright's own.
chromium: setup
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	$(BIN)/playwright install chromium

# The bars of `tide browse` in Chromium, alone on the machine.
browse-check: chromium
	$(BIN)/python -m benchmarks.browse runs/demo-fast --check

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(PARITY) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
