# Verbs of everyday use; each is one line of `seriatim`, pytest or ruff. `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.seriatim-env

# make sim NET=resnet18 W=1 A=8 [QUANT=slb] [ACT_QUANT=pact] [IMAGE=224] [IMAGES=10] [FIRST_LAST=8] [BOARD=icebreaker [DEVICE=port]] [OUT=dir] [ARGS="--latency 50 ..."]
NET ?= resnet18
W ?= 1
A ?= 8
option = $(if $($(1)),$(2) $($(1)))
SIM_OPTIONS = --net $(NET) --w $(W) --a $(A) $(call option,QUANT,--quant) $(call option,ACT_QUANT,--act-quant) \
	$(call option,IMAGE,--image) $(call option,IMAGES,--images) $(call option,FIRST_LAST,--first-last) \
	$(call option,BOARD,--board) $(call option,DEVICE,--device) $(call option,OUT,--out) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help env sim bitstream test test-slow cocotb soak data lint types bench docs clean

help: ## list the verbs
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@echo
	@echo '  make sim NET=resnet18 W=1 A=8 [QUANT=slb] [ACT_QUANT=pact] [IMAGE=224] [IMAGES=10] [FIRST_LAST=8] [BOARD=icebreaker [DEVICE=port]] [OUT=dir] [ARGS=...]'

env: $(STAMP) ## create .venv with every pinned dependency

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "seriatim: error: no '$(PYTHON)' on PATH; Seriatim needs" \
		"Python 3.11: install it, or name it with 'make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "seriatim: error: could not make .venv;" \
		"'$(PYTHON) -m venv' must work: install the venv package of your distribution" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,docs,tensorboard,boards]'
	@touch $@

sim: $(STAMP) ## compile a network and run it on the simulated accelerator
	$(BIN)/seriatim sim $(SIM_OPTIONS)

bitstream: $(STAMP) ## a board's bitstream and its report: BOARD=ulx3s-85f (`seriatim board list`)
	$(BIN)/seriatim bitstream --board $(or $(BOARD),$(error make bitstream BOARD=NAME: `seriatim board list` has the names)) $(ARGS)

# Two workers with a thread each: more threads than cores would wait for one another.
PYTEST = OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test: $(STAMP) ## every test but the slow ones
	@tools/debian.sh iverilog
	$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## the slow tests: cocotb, synthesis
	@tools/debian.sh iverilog
	$(BIN)/python -m pytest -q -m slow

cocotb: $(STAMP) ## the cocotb testbenches at the AXI ports
	@tools/debian.sh iverilog
	$(BIN)/seriatim cocotb $(ARGS)

soak: $(STAMP) ## random nets on every level until the time is over: MINUTES=10
	$(BIN)/seriatim soak $(call option,MINUTES,--minutes) $(ARGS)

data: ## Fashion-MNIST, from Debian (training needs it, simulation does not)
	@tools/debian.sh dataset-fashion-mnist

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .

types: $(STAMP) ## mypy (advice: never fails)
	@mkdir -p build/links && rm -rf build/links/seriatim && mkdir build/links/seriatim
	@ln -sfn $(CURDIR)/src/seriatim/*.py build/links/seriatim/
	@for part in algo boards compiler hw sim; do ln -sfn $(CURDIR)/$$part build/links/seriatim/$$part; done
	-MYPYPATH=build/links $(BIN)/mypy --explicit-package-bases -p seriatim

bench: $(STAMP) ## measure the published figures
	$(BIN)/seriatim bench $(ARGS)

docs: $(STAMP) ## the documentation as a site that needs no network: build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo build/docs/index.html

clean: ## remove everything built (.venv stays)
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
