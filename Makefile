PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Waiting threads that spin make everything slow when several processes share the cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test lint clean cluster-tools

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
	@$(BIN)/python -m evaluators.report $(DEMO) -o $(DEMO)/report.html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# One more worker than the cores of a small machine: tests that start commands mostly wait (tests/conftest.py).
test: lint cluster-tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadscope

# Programs that tests run: Slurm, network namespaces, container builds, a browser. Without them those tests are skipped.
CLUSTER_PROGRAMS := slurmctld slurmd srun munged ip ps buildah debootstrap chromium
CLUSTER_PACKAGES := slurm-wlm munge iproute2 procps buildah debootstrap chromium

cluster-tools:
	@missing=""; \
	for program in $(CLUSTER_PROGRAMS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $$program > /dev/null || missing="$$missing $$program"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get > /dev/null; then \
		echo "cluster-tools: not Debian or Ubuntu; tests that need$$missing are skipped"; \
	elif [ "$$(id -u)" != 0 ]; then \
		echo "cluster-tools: not root; tests that need$$missing are skipped (apt-get install $(CLUSTER_PACKAGES))"; \
	else \
		export DEBIAN_FRONTEND=noninteractive; \
		(apt-get update && apt-get install -y --no-install-recommends $(CLUSTER_PACKAGES)) > /dev/null \
			|| echo "cluster-tools: apt-get failed; tests that need$$missing are skipped"; \
	fi

clean:
	rm -rf $(VENV) work_dir
