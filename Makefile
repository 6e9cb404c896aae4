# Every target sets up .venv first where it is missing or older than what it is made from.
# PYTHON=python3.12 make test    chooses the interpreter; VENV=path puts the environment elsewhere.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q
# A value as it was typed, for a shell: quotes, dollars and blanks in PROMPT="…" arrive as they are.
typed = '$(subst ','\'',$(subst $$$$,$$,$(value $(1))))'

# The GPT-2 vocabulary, where a copy lies beside the checkout: tests that need it are skipped elsewhere.
ifneq ($(wildcard ../shared/tiktoken),)
export TIKTOKEN_CACHE_DIR ?= $(abspath ../shared/tiktoken)
endif

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow lint types ladder climb parity train-tinystories train-shakespeare generate look notebooks docs wheel test-wheel bench bench-gpu bench-peers mutants test-bridge test-tensorflow test-gguf clean
LAYERS := embed pos-embed layer-norm layernorm attention mlp block unembed model
.PHONY: $(addprefix test-,$(LAYERS))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-zA-Z_%-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '  make %-18s %s\n' test-LAYER 'the tests of one layer, in seconds (IMPL=my.py:Name: yours is tried instead): $(LAYERS)'

setup: $(VENV)/.ready ## make .venv with everything in it (the other targets do this by themselves)

# How every environment begins, in the folder of its target: torch first and alone, at the version of constraints.txt,
# since what the other packages would ask for is larger.
define NEW_ENVIRONMENT
	@echo "Setting up $(@D): this takes a few minutes, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: PYTHON=python3.11 make …")'
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(INSTALL) "$$(grep '^torch==' constraints.txt)"
endef
INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check

$(VENV)/.ready: pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	@$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@$(@D)/bin/python -c "$$LINK"
	@touch $@
	@echo "$(VENV) is ready."

# Editors and type checkers do not run the import hook of an editable install; they follow a link.
define LINK
import os, sysconfig
link = os.path.join(sysconfig.get_paths()["purelib"], "gptladder")
if not os.path.lexists(link):
    try:
        os.symlink(os.getcwd(), link, target_is_directory=True)
    except OSError as error:
        print(f"no link for editors and type checkers ({error}); everything else works")
endef
export LINK

# As many processes as processors, of one thread each (tests/conftest.py): threads of several processes spin against
# each other. Tests of one file stay together, because they share fixtures.
test: lint types ## lint, types and every test that needs no network
	$(PYTEST) -n auto --dist loadscope --no-loadscope-reorder -m "not slow"

test-slow: $(VENV)/.ready ## the tests that take minutes
	$(PYTEST) -m slow --timeout 3000

lint: $(VENV)/.ready ## ruff, the linter and the formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready ## pyright on package, tests, demos and benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python

test-layernorm test-layer-norm: FILE = tests/components/test_layer_norm.py
test-model: FILE = tests/assembly/test_model.py
FILE = tests/components/test_$(subst -,_,$*).py
$(addprefix test-,$(LAYERS)): test-%: $(VENV)/.ready
	$(if $(IMPL),$(BIN)/gptladder climb --$* $(call typed,IMPL) $(ARGS),$(PYTEST) $(FILE))

ladder: $(VENV)/.ready ## climb the layers in order; stop at the first that differs from the references
	$(BIN)/gptladder ladder

climb: $(VENV)/.ready ## your own layers: ARGS="--attention my.py:Attention --mlp my.py:MLP" (gptladder climb --help)
	$(BIN)/gptladder climb $(ARGS)

parity: $(VENV)/.ready ## layers, whole model, round trips against the references (MODEL=name-or-folder: real weights)
	$(BIN)/gptladder parity $(if $(MODEL),--model $(call typed,MODEL))

# The text is TinyStories from the hub, or without a network stories made here. ARGS adds options: gptladder train --help.
# A run that was stopped is continued, unless ARGS say to begin again.
CONTINUE = $(if $(filter --overwrite --resume --resume=% --name --name=%,$(ARGS)),,--resume auto)
train-tinystories: $(VENV)/.ready ## train a small GPT to tell stories; continues a stopped run (ARGS="--overwrite": begins again)
	$(BIN)/gptladder train --preset tinystories $(CONTINUE) $(ARGS)

train-shakespeare: $(VENV)/.ready ## train on the characters of TEXT=input.txt; continues a stopped run
	$(if $(TEXT),,$(error which text? make train-shakespeare TEXT=input.txt))
	$(BIN)/gptladder train --preset shakespeare-char --corpus $(call typed,TEXT) $(CONTINUE) $(ARGS)

generate: PROMPT ?= Once upon a time
generate: MODEL ?= runs/tinystories
generate: $(VENV)/.ready ## continue PROMPT="Once upon a time" with the model of train-tinystories (MODEL=folder: another)
	$(BIN)/gptladder generate $(call typed,PROMPT) --model $(call typed,MODEL) $(ARGS)

look: PROMPT ?= Once upon a time there was
look: MODEL ?= runs/tinystories/final
look: $(VENV)/.ready ## write look.html, a page about what a model does with PROMPT="Once upon a time there was" (MODEL=folder)
	$(BIN)/gptladder look $(call typed,PROMPT) --model $(call typed,MODEL) $(ARGS)

# Figures for docs/performance.md. Anything else that runs makes them worse, and the benchmarks say so.
RESULTS ?= benchmarks/results/cpu
bench: $(VENV)/.ready ## training, decoding, loading, time to a loss beside transformers': half an hour (TEXT=input.txt, NANOGPT=folder)
	$(BIN)/python benchmarks/training.py --json $(RESULTS)/training.json --picture $(RESULTS)/training.png
	$(BIN)/python benchmarks/decode.py --json $(RESULTS)/decode.json $(addprefix --trained ,$(wildcard runs/tinystories/final))
	$(BIN)/python benchmarks/core.py --json $(RESULTS)/core.json
	$(BIN)/python benchmarks/time_to_loss.py $(if $(TEXT),--text "$(TEXT)") $(if $(NANOGPT),--nanogpt "$(NANOGPT)") \
		--json $(RESULTS)/time_to_loss.json --picture $(RESULTS)/time_to_loss.png

bench-gpu: $(VENV)/.ready ## training and decoding on a CUDA device
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu/gpu.json

bench-peers: .venv-bench/.ready ## a training step beside x-transformers, litgpt and TransformerLens too
	.venv-bench/bin/python -W ignore benchmarks/training.py --shapes char gpt2 --contestants ours transformers TransformerLens x-transformers litgpt \
		--json $(RESULTS)/peers.json

mutants: $(VENV)/.ready ## which changes of the library no test notices: hours (MODULES="components/mlp.py": of some files)
	$(BIN)/python -W ignore tests/mutants.py $(MODULES)

notebooks: $(VENV)/.ready ## run the notebooks, and store what they show
	$(BIN)/python notebooks/store.py

docs: $(VENV)/.ready ## build the documentation site in build/site/html
	$(BIN)/python docs/site/gather.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open build/site/html/index.html (its search needs a server: python -m http.server --directory build/site/html)"

wheel: $(VENV)/.ready ## build dist/*.whl
	@rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

test-wheel: wheel ## install the wheel alone in a new environment, and use a layer from a folder that has components/ of its own
	rm -rf .venv-wheel && $(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	mkdir -p .venv-wheel/project/components && touch .venv-wheel/project/components/__init__.py
	cd .venv-wheel/project && ../bin/python -c "import components, torch; from gptladder.components import Attention; \
		print(Attention(d_model=8, n_heads=2)(torch.zeros(1, 3, 8)).shape, components.__file__)"
	! .venv-wheel/bin/python -c "import transformers" 2>/dev/null
	! .venv-wheel/bin/python -c "import transformer_lens" 2>/dev/null

# litgpt asks for an older huggingface_hub than transformers' and ours; of it the model alone is used, which needs neither.
.venv-bench/.ready: pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	@$(INSTALL) --constraint constraints.txt --editable '.[bench]' lightning jsonargparse psutil
	@$(INSTALL) --no-deps litgpt
	@touch $@

# TransformerLens 4 has no HookedTransformer, which the other tests are judged against: it gets an environment of its own.
test-bridge: .venv-bridge/.ready ## models of TransformerLens 4, which .venv cannot hold, in an environment made for it
	.venv-bridge/bin/python -m pytest -q tests/weights/formats/test_bridge.py tests/lens/test_transformer_lens_tools.py

.venv-bridge/.ready: pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	@grep -v '^transformer-lens==' constraints.txt >$(@D)/constraints.txt
	@$(INSTALL) --constraint $(@D)/constraints.txt \
		--editable . 'transformer-lens>=4' transformers hypothesis pytest pytest-timeout
	@touch $@

# TensorFlow is as large as everything else together, and tensorboard would load it wherever it finds it.
test-tensorflow: .venv-tensorflow/.ready ## OpenAI's checkpoints, written by the real tensorflow, in an environment made for it
	.venv-tensorflow/bin/python -m pytest -q tests/weights/formats/test_tensorflow.py

.venv-tensorflow/.ready: pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	@$(INSTALL) --constraint constraints.txt --editable '.[reference,tensorflow]' hypothesis pytest pytest-timeout
	@touch $@

# xllamacpp contains llama.cpp, built for processors with AVX2 (x86-64) or for armv8, on Linux, macOS and Windows: not for
# every machine that the other tests run on, so it gets an environment of its own.
test-gguf: .venv-gguf/.ready ## GGUF files read by llama.cpp, in an environment made for it (MODEL=folder: texts of a trained model too)
	$(if $(MODEL),GPTLADDER_MODEL=$(call typed,MODEL),$(TRAINED)) .venv-gguf/bin/python -m pytest -q tests/weights/formats/test_llama_cpp.py
TRAINED = $(addprefix GPTLADDER_MODEL=,$(wildcard runs/tinystories/final))

.venv-gguf/.ready: pyproject.toml constraints.txt
	$(NEW_ENVIRONMENT)
	@$(INSTALL) --constraint constraints.txt --editable '.[gguf]' hypothesis pytest pytest-timeout xllamacpp
	@touch $@

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) .venv-* build dist reports *.egg-info .pytest_cache .ruff_cache .hypothesis
