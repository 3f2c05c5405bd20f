PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint clean

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Trains CLD on handwritten digits on two local ranks, evaluates it on two, and says what came out.
DEMO := work_dir/demo
DEMO_RUN := $(BIN)/python main.py -cc configs/smoke/digits.txt --workdir $(DEMO) --n_gpus_per_node 2 --device cpu
demo: setup
	$(DEMO_RUN) --mode train --overwrite
	$(DEMO_RUN) --mode eval --eval_folder nelbo_fid --eval_likelihood --eval_fid --eval_sample --eval_fid_samples 1500
	@echo
	@$(BIN)/python -m evaluators.summary $(DEMO) nelbo_fid

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) work_dir
