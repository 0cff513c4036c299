# Two commands do everything: `make compare` and `make test`. Both set up .venv first.
# TORCH pins torch, e.g. TORCH=torch==2.13.0; PYTHON chooses the interpreter (3.11 or newer);
# EXTRAS=test,julia adds the Julia engine to the tests; PINS are further requirements.
# Tests run in WORKERS processes (0: in one, as a debugger needs it), each with THREADS threads.

PYTHON ?= python3
TORCH ?= torch
EXTRAS ?= test
PINS ?=
WORKERS ?= 2
THREADS ?= 1
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: compare test test-all lint clean

# the main job: a comparison of adjoints on four problems, printed as tables, figures in out/
compare: $(VENV)/.run
	$(BIN)/pyode compare --out out

# the default tests; pytest's own summary comes last
test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# the slow ones too
test-all: $(VENV)/.test
	$(PYTEST) $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# torch first and alone, so that a pinned build is not replaced by what another package asks for
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" numpy
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]" $(PINS)
	touch $@

$(VENV)/.lint: $(VENV)/.test pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[lint]"
	touch $@

clean:
	rm -rf $(VENV) out
