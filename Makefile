# Everything that a person or CI runs. Needs only Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# most tests wait for something: four at a time use two cores by half
WORKERS ?= 4
# the fast ring computes: a fourth process costs more than it helps (74 s with three, 83 s with four)
FAST_WORKERS ?= 3

.PHONY: run demo programs test test-fast soak check bench docs audit secrets-scan rules wheel clean

run: $(VENV)/.ready      ## the WhatsApp example on an embedded PostgreSQL, until Ctrl-C
	$(BIN)/python -m examples.whatsapp run

demo: $(VENV)/.ready     ## the same, finite: ends with a summary that adds up
	$(BIN)/python -m examples.whatsapp demo

programs:                ## what some tests use from Debian's archive and npm; needs root, or sudo
	.ci/programs

test: $(VENV)/.ready     ## every test; those of integration once more on the oldest PostgreSQL
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal
	@[ ! -e .ci/postgres/node_modules/postgres14 ] || TESTS_SERVER=postgres14 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal tests/integration

test-fast: $(VENV)/.ready ## the fast ring, under a minute
	$(BIN)/pytest --numprocesses $(FAST_WORKERS) --dist worksteal -m "not slow" -x -q

soak: $(VENV)/.ready     ## what is killed at random moments, with a hundred seeds; minutes
	SOAK_SEEDS=100 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal tests/schedules/backfill -k killed

check: $(VENV)/.ready    ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.ready     ## the documentation as a site in site/: open site/index.html, no network needed
	$(BIN)/python docs/site/build.py site

bench: $(VENV)/.ready    ## benchmark against peers; SYSTEMS=, METRICS=, ROUNDS= choose a part
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

audit: $(VENV)/.ready    ## known vulnerabilities of what constraints.txt pins; asks PyPI, and fails when it gets no answer
	$(BIN)/pip check
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

secrets-scan:            ## keys, tokens and passwords in the files that git tracks
	$(PYTHON) .ci/scan_secrets.py

PROMETHEUS_RULE := deploy/kubernetes/components/monitoring/prometheus-rule.yaml
rules:                   ## copy the alert rules into the manifest for the Prometheus operator
	{ sed '/^spec:/q' $(PROMETHEUS_RULE); sed -n '/^groups:/,$$p' deploy/prometheus/packhorse.rules.yml | sed 's/^\(.\)/  \1/'; } > $(PROMETHEUS_RULE).new
	mv $(PROMETHEUS_RULE).new $(PROMETHEUS_RULE)

wheel: $(VENV)/.ready
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist site .packhorse .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	touch $@
