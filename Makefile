# One door for people and for CI. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo up down test lint unit docs clean e2e e2e-celery e2e-engines e2e-autoscaling chaos kill-drill spark-cluster gpu-check images secrets stack stack-down stack-test venv

PYTHON ?= python3
HARDWARE ?= cpu
# Processes that share the tests: more than there are cores, as tests wait for servers much of the time. With 0 they run one after the other in one, where a debugger works.
WORKERS ?= 4
VENV := .venv
BIN := $(VENV)/bin
# A uv of the project's own, so that nothing outside this folder is touched.
UV := $(shell command -v uv 2>/dev/null || echo build/uv/bin/uv)
STAMP := $(VENV)/.installed-$(HARDWARE)
# Processes share the cores: a thread of FAISS or torch that waits for others must not spin meanwhile.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q
SHARED := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
export CATALOG ENGINE

help: ## this list
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: $(STAMP) java ## from a fresh clone to a running visual search (CATALOG=<folder> takes your own catalogue, ENGINE=pgvector or milvus another engine)
	@$(BIN)/python -m tasks.demo demo

up: $(STAMP) java ## the same, and stay up until Ctrl-C
	@$(BIN)/python -m tasks.demo up

down: ## stop everything that demo or up started, and nothing else
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m tasks.demo down; else echo "nothing was started from here"; fi

test: $(STAMP) java lint ## lint, types and all tests but those of e2e and kill-drill, in four processes (WORKERS=0: in one)
	@$(PYTEST) $(SHARED) $(ARGS)

unit: $(STAMP) ## the quick tests: no servers, no Spark, no Airflow, no training
	@$(PYTEST) $(SHARED) -m "not slow and not e2e and not kill_drill and not stack" $(ARGS)

lint: $(STAMP) ## style, types and the directions of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: $(STAMP) ## write the table of settings in docs/operate/settings.md from the code
	@$(BIN)/python -m tasks.settings_page

spark-cluster: $(STAMP) java ## a Spark master and two workers on this machine, until Ctrl-C
	@$(BIN)/python -m tasks.embed.cluster

e2e: $(STAMP) java ## over the real Airflow: tasks are killed, three nights, six hours, versions that must not get through
	@$(PYTEST) -m e2e tests/e2e

e2e-%: $(STAMP) java ## one of them: make e2e-<name> runs tests/e2e/test_<name>.py
	@$(PYTEST) -m e2e tests/e2e/test_$*.py

e2e-engines: $(STAMP) build/envs/engines/.installed ## the contract of the engines that are not in test: ScaNN, and the clients of Qdrant, Weaviate, Pinecone
	@$(PYTEST) -m e2e -n0 tests/engines/test_scann.py tests/engines/test_qdrant.py
	@$(PYTEST:$(BIN)/%=$(ENVS)/engines/bin/%) -m e2e -n0 tests/engines/test_weaviate.py tests/engines/test_pinecone.py

e2e-autoscaling: $(STAMP) ## replicas of a quarter of a core come and go with the load as Kubernetes' scalers say, behind HAProxy (root, Linux)
	@.ci/need-haproxy
	@$(PYTEST) -n0 -m e2e tests/e2e/test_autoscaling.py

# Encoder servers and their clients do not go with the pins: environments whose few packages come before those of .venv.
ENVS := build/envs
CLIENTS := $(ENVS)/clients
SERVERS := $(addprefix $(ENVS)/,clients/.installed triton/.installed torchserve/.installed)
e2e-encoder-servers: $(SERVERS) java ## replicas whose photos Triton or TorchServe encodes, over real servers: golden outputs, an outage
	@$(CLIENTS)/bin/python -m pytest -q -m e2e tests/encoder_servers $(ARGS)

bench-encoder-servers: $(SERVERS) java ## photos encoded in process, by Triton and by TorchServe, side by side at 1, 8 and 32 clients
	@mkdir -p build/bench && $(CLIENTS)/bin/python -m tests.benchmarks.bench_encoder_servers $(ARGS)

$(ENVS)/%/.installed: $(STAMP) tests/encoder_servers/%.txt
	$(call environment,$(ENVS)/$*,tests/encoder_servers/$*.txt)

$(ENVS)/engines/.installed: $(STAMP) tests/engines/clients.txt
	$(call environment,$(ENVS)/engines,tests/engines/clients.txt)

# $(call environment,FOLDER,LIST): the packages of LIST before those of .venv.
define environment
@echo "installing $(2) into $(1)"
@$(UV) venv -q --clear --python $(BIN)/python $(1)
@VIRTUAL_ENV=$(1) $(UV) pip install -q --no-deps -r $(2)
@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
  > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
@touch $(1)/.installed
endef

CELERY := build/celery
e2e-celery: java ## the chain on two Celery workers that share no file system, with PostgreSQL, Redis and S3, in an environment of its own
	@$(MAKE) --no-print-directory VENV=$(CELERY) EXTRAS=,postgres,celery,s3-logs,statsd $(CELERY)/.installed-$(HARDWARE)
	@OMP_WAIT_POLICY=PASSIVE $(CELERY)/bin/python -m pytest -q -n0 -m e2e tests/e2e/test_celery.py

KILLED := release/promotion/test_killed_promotions.py catalog/changes/test_kills.py embed/test_job.py encoder/train/test_distributed.py
kill-drill: $(STAMP) java ## promotions and refreshes killed before and after every one of their writes, jobs in the middle
	@$(PYTEST) -m "" $(addprefix tests/,$(KILLED))

chaos: $(STAMP) ## every part killed, paused, cut off and slowed under searches and refreshes: a table of what was promised and what was seen
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -W ignore -m tests.chaos $(ARGS)

bench-%: $(STAMP) ## one benchmark, e.g. make bench-index; prints a table, writes build/bench/<name>.json
	@mkdir -p build/bench && $(BIN)/python -m tests.benchmarks.bench_$* $(ARGS)

gpu-check: ## what an NVIDIA GPU does with our encoders: training, embedding, latency; at most 8 minutes (PYTHON=, ARGS=--tiny)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.benchmarks.gpu_check $(ARGS)

# Images and the stack of docker/compose.yaml. CONTAINER: docker, podman or a command that takes their arguments; BASE may name a
# digest; TAG names what is built (with HARDWARE=gpu: TAG-gpu), and in docker/.env what runs; STANDINS=1 takes PostgreSQL, Redis, nginx and
# Prometheus from Debian, where their own images cannot be pulled.
CONTAINER ?= $(shell command -v docker >/dev/null && echo docker || echo podman)
BASE ?= docker.io/library/python:3.11-slim-bookworm
TAG ?= latest
PROFILE ?= minimal
IMAGES := serving airflow spark mlflow standins
TAGGED = $(TAG)$(if $(filter gpu,$(HARDWARE)),-gpu)
# Stand-ins are of the tag that compose takes: the environment's, else that of docker/.env.
STANDING_IN = set -a; TAG=$${TAG:-$$(sed -n 's/^TAG=//p' docker/.env 2>/dev/null)}; . docker/standins/images.env; set +a;
COMPOSE = $(if $(STANDINS),$(STANDING_IN)) $(CONTAINER) compose --env-file docker/.env -f docker/compose.yaml

images: $(addprefix image-,$(IMAGES)) ## all images of docker/, and their sizes (TAG=0.2.0, BASE=…@sha256:…, HARDWARE=gpu, CONTAINER=podman)
	@docker/image-sizes "$(CONTAINER)" $(BASE) $(addprefix vitrine-,$(addsuffix :$(TAGGED),$(IMAGES)))

image-%: ## one of them (image-serving and image-airflow also with EXTRAS=,pgvector)
	@$(CONTAINER) build -q -f docker/Dockerfile.$* --build-arg BASE=$(BASE) --build-arg HARDWARE=$(HARDWARE) \
	  $(if $(EXTRAS),--build-arg EXTRAS=$(EXTRAS)) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) -t vitrine-$*:$(TAGGED) .

secrets: ## draw every secret of docker/compose.yaml into docker/.env (kept where it is there)
	@docker/make-secrets

stack: secrets ## docker/compose.yaml up (PROFILE=minimal, full or gpu; WITHOUT="postgres s3 s3-buckets": those are your own)
ifeq ($(WITHOUT),)
	@$(COMPOSE) --profile $(PROFILE) up -d
else
	@all=$$($(COMPOSE) --profile $(PROFILE) config --services) && [ "$$all" ] || { echo "compose names no services: nothing was started" >&2; exit 1; }; \
	  for name in $(WITHOUT); do grep -qxF "$$name" <<<"$$all" || { echo "the profile $(PROFILE) has no service $$name: nothing was started" >&2; exit 1; }; done; \
	  kept=$$(grep -vxF "$$(printf '%s\n' $(WITHOUT))" <<<"$$all") || { echo "no service is left: nothing was started" >&2; exit 1; }; \
	  $(COMPOSE) --profile $(PROFILE) up -d $$kept
endif

stack-down: ## and down, whatever its profile was; its volumes stay
	@$(COMPOSE) $(addprefix --profile ,minimal full gpu) down

stack-test: $(STAMP) ## the images as a stack: nightly and hourly, a photo, killed parts, a restart, a restore (PART=test_stack_search.py: without Airflow; PROFILE=full WITHOUT=grafana: on its Spark)
	@CONTAINER="$(CONTAINER)" STANDINS="$(STANDINS)" PROFILE="$(PROFILE)" WITHOUT="$(WITHOUT)" $(PYTEST) -m stack -s -n0 tests/docker/$(or $(PART),)

venv: $(STAMP) ## only the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or 3.12 is needed, this is %d.%d" % sys.version_info[:2] if not (3, 11) <= sys.version_info < (3, 13) else 0)'
	@if [ "$(UV)" = build/uv/bin/uv ] && [ ! -x $(UV) ]; then echo "installing uv into build/uv"; $(PYTHON) -m venv build/uv && build/uv/bin/pip install -q uv; fi
	@[ -x $(BIN)/python ] || $(UV) venv -q --python $(PYTHON) $(VENV)
	@echo "installing the packages of constraints.txt into $(VENV) (1-3 minutes the first time)"
	@VIRTUAL_ENV=$(VENV) $(UV) pip install -q --compile-bytecode -c constraints.txt -e '.[$(HARDWARE),serving,pipeline,dev$(EXTRAS)]'
	@touch $@

.PHONY: java
java:
	@.ci/need-java

clean: down ## remove the virtual environment, builds and everything a run made
	rm -rf $(VENV) build .vitrine
