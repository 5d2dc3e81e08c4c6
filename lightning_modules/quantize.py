"""Quantised reasoning (arXiv 2504.04823): how much accuracy a policy loses at few bits, and where.

A matrix of bits (weights, activations, cache of keys and values) by methods: rounding to the nearest, GPTQ, AWQ,
SmoothQuant, Hadamard rotation (QuaRot) and KVQuant's keys by channel. Numbers are rounded to their grids and computed
with as floats, so no kernel for few bits is needed, and none is timed; policies/quantization/int8.py has the real one.

    python main.py test --config configs/quantize.yaml
    python main.py test --config configs/quantize.yaml --ckpt_path RUN/checkpoints/FILE.ckpt
"""

import math
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lightning_modules.core.arm_figures import Answered, arm_figures
from lightning_modules.core.calibration import Calibration, given_sequences, training_rows, written
from lightning_modules.core.data_checks import rows_of
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.measuring import MeasuringModule
from lightning_modules.core.sampling_module import SamplingModule
from policies import PolicyParams, PromptGroups
from policies.quantization import (
    Bits,
    LayerReport,
    QuantizationMethod,
    input_statistics,
    quantized,
    whole_model_bits,
)
from policies.quantization.grids import FLOAT_BITS
from policies.quantization.matrix import METHODS, cells
from policies.quantization.outliers import inject_outliers
from rewards import Reward
from rollouts import BatchPlan, Environment, SamplingParams, TransformersEngine
from support.errors import ConfigError
from support.papers import Paper
from support.processes import gathered, summed
from support.seeding import isolated_rng

Rows = list[dict[str, Any]]
Pair = tuple[list[int], list[int]]


class Quantize(MeasuringModule, SamplingModule):
    """Measures a policy in float and in every cell of the matrix.

    `figures` holds the result: of every cell accuracy and length over all seeds and by difficulty, perplexity on
    solutions, bits per weight, and the error of every layer. `callbacks.QuantizationReport` writes it.

    Args:
        policy: the model, or for a checkpoint the policy of its run.
        rewards: one of them judges correctness.
        bits: rows of the matrix for methods without `bits` of their own.
        methods: columns of the matrix; the paper's if None. A cell in which a method does the same as an earlier one is
            left out.
        calibration: the data of GPTQ, AWQ and SmoothQuant, on which all layer errors are measured.
        seeds: of the sampling; every cell is sampled once with each; 42, 43 and 44 if None. Without any, perplexity on
            `solutions` and the layers' errors are measured, and nothing is sampled.
        difficulty: column of the data by which problems are grouped.
        solutions: column with worked solutions, on which perplexity is measured; if None, the float policy's own right
            completions.
        outliers: factor by which a few channels are scaled before all measurements, without changing the float model
            (`policies/quantization/outliers.py`); 1 leaves the model alone.
        batch: only rollout_micro_batch and update_token_budget act.
        sampling: settings of all samples.
        evaluation: number of samples per problem and seed.
        environment: what follows each turn of a completion; None for completions of one turn.
        optimizer, lr_scheduler: as in every module; a test uses neither.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        bits: list[str] | None = None,
        methods: list[QuantizationMethod] | None = None,
        calibration: Calibration = Calibration(),
        seeds: list[int] | None = None,
        difficulty: str = "level",
        solutions: str | None = None,
        outliers: float = 1.0,
        batch: BatchPlan = BatchPlan(1, 1, update_token_budget=16384),
        sampling: SamplingParams = SamplingParams(max_new_tokens=32768, temperature=0.6, top_p=0.95),
        evaluation: Evaluation = Evaluation(),
        environment: Environment | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            evaluation=evaluation,
            engine=None,
            environment=environment,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.seeds = [42, 43, 44] if seeds is None else seeds
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"model.seeds is {seeds}; name different seeds.")
        if not self.seeds and (solutions is None or calibration.source == "traces"):
            raise ConfigError(
                "model.seeds is empty, so nothing is sampled; set model.solutions to a column of the data, and "
                "model.calibration.source to solutions, random or a file."
            )
        if not 1 <= outliers < math.inf:
            raise ConfigError(f"model.outliers is {outliers}; it is a factor of 1 (none) or more.")
        self.cells = cells([Bits.parse(text) for text in bits or []], METHODS if methods is None else methods)
        self.calibration, self.difficulty = replace(calibration), difficulty
        self.solutions, self.outliers = solutions, outliers
        self.figures: dict[str, Any] = {}
        self._batches: list[Rows] = []
        self._simulating = TransformersEngine()  # the model's own forward, in which activations and caches are rounded

    def setup(self, stage: str) -> None:
        if self.correctness_reward() is None:
            raise ConfigError(
                "Quantize measures accuracy, but none of model.rewards judges correctness; add one, such as "
                "rewards.ExactAnswer."
            )
        super().setup(stage)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._batches = []

    def test_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the rows; every cell is measured on all of them, so the model is quantised once per cell."""
        self.configure_model()
        self._batches.append(rows_of(rows, self.rewards, self.rows_checked))

    @torch.no_grad()
    def on_test_epoch_end(self) -> None:
        if self.policy_params.lora is not None:
            self.policy.model.merge_adapter()
        if self.outliers > 1:
            inject_outliers(self.policy, self.outliers)
        baseline, samples = self._answers(self.engine)
        solutions = self._solutions(samples)
        statistics = input_statistics(self.policy, self._calibration_sequences())
        if self.seeds and any(min(bits.activations, bits.cache) < FLOAT_BITS for bits, _ in self.cells):
            # The engine compares itself with the model's forward once; rounding would make the two differ.
            with isolated_rng("test", self.seeds[0]):
                self._sampled(self._batches[0], self._simulating)
        self.figures = {
            "model": self.policy_params.model,
            "seeds": self.seeds,
            "calibration": {**asdict(self.calibration), "tokens": statistics[0].tokens},
            "cells": [self._figures("float", Bits(), [], baseline, baseline, solutions)],
        }
        for bits, method in self.cells:
            with quantized(self.policy, bits, method, statistics) as reports:
                simulated = min(bits.activations, bits.cache) < FLOAT_BITS
                answers, _ = self._answers(self._simulating if simulated else self.engine)
                cell = self._figures(method.name, bits, reports, answers, baseline, solutions)
            if bits.cache < FLOAT_BITS:
                size = self.policy.bare.config.get_text_config(decoder=True)
                width = getattr(size, "head_dim", None) or size.hidden_size // size.num_attention_heads
                cell["cache_bits"] = method.cache_grid(bits.cache).stored_bits(1, width)
            self.figures["cells"].append(cell)
            if self.trainer.is_global_zero:
                print(
                    f"{bits} {method.name}: accuracy {cell.get('accuracy')}, perplexity {cell['perplexity']}",
                    flush=True,
                )
        for cell in self.figures["cells"]:
            for name in ("accuracy", "length", "perplexity", "bits_per_weight", "error"):
                if cell.get(name) is not None:
                    self.log(f"test/{cell['bits']}/{cell['method']}/{name}", cell[name], sync_dist=True)
        if self.policy_params.lora is not None:
            self.policy.model.unmerge_adapter()
        super().on_test_epoch_end()

    # ---- samples and perplexity --------------------------------------------------------------------------------------

    def _sampled(self, rows: Rows, engine: Any) -> Any:
        configured, self.engine = self.engine, engine
        try:
            return self.sample(rows, self.evaluation.samples, self.evaluation_sampling)
        finally:
            self.engine = configured

    def _answers(self, engine: Any) -> tuple[list[Answered], list[tuple[list[int], list[int], bool]]]:
        """(the answers of all processes, this process' samples of the first seed: prompt, completion, is right)."""
        answers: list[Answered] = []
        samples: list[tuple[list[int], list[int], bool]] = []
        judge = self.correctness_reward()
        assert judge is not None
        for seed in self.seeds:
            for rows in self._batches:
                with isolated_rng("test", seed):
                    batch = self._sampled(rows, engine)
                    batch.rewards = self.score(batch)
                grades = judge.unscaled(batch.rewards[judge.name], batch).tolist()
                lengths, truncated = batch.lengths.tolist(), batch.truncated.tolist()
                for row, grade in enumerate(grades):
                    if math.isnan(grade):
                        continue
                    of_row = batch.rows[row // batch.group_size]
                    level = of_row.get(self.difficulty, of_row.get("task"))
                    difficulty = None if level is None else str(level)
                    answers.append(
                        Answered(str(of_row.get("id")), difficulty, seed, grade >= 1, lengths[row], truncated[row])
                    )
                    if seed == self.seeds[0]:
                        prompt = batch.prompt_ids[row // batch.group_size][batch.prompt_mask[row // batch.group_size]]
                        completion = batch.completion_ids[row][batch.completion_mask[row]]
                        samples.append((prompt.tolist(), completion.tolist(), grade >= 1))
        return [answer for part in gathered(answers) for answer in part], samples

    def _solutions(self, samples: list[tuple[list[int], list[int], bool]]) -> list[Pair]:
        """Prompts and solutions on which perplexity is measured."""
        if self.solutions is not None:
            return [written(self.policy, row, self.solutions) for rows in self._batches for row in rows]
        return [(prompt, completion) for prompt, completion, is_right in samples if is_right]

    def _perplexity(self, solutions: list[Pair]) -> float | None:
        """exp of the mean negative log-prob per token; None without solutions."""
        total = torch.zeros(2, dtype=torch.float64, device=self.policy.device)
        for start in range(0, len(solutions), 16):
            prompts, completions = (list(part) for part in zip(*solutions[start : start + 16], strict=True))
            groups = PromptGroups.of(prompts, completions, self.policy.pad_token_id, self.policy.device)
            logprobs = self.policy.logprobs(groups)[0].masked_fill(~groups.completion_mask, 0.0)
            total -= torch.stack([logprobs.double().sum(), -groups.completion_mask.double().sum()])
        total = summed(total)
        return float((total[0] / total[1]).exp()) if total[1] else None

    def _calibration_sequences(self) -> list[list[int]]:
        data = getattr(self.trainer, "datamodule", None)
        if self.calibration.source != "traces":
            return given_sequences(self.policy, self.calibration, self.solutions, data)
        rows, longest = training_rows(data, self.calibration.size), self.calibration.max_tokens
        sequences: list[list[int]] = []
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            with isolated_rng("calibration", self.seeds[0]):
                batch = self.sample(part, 1, self.evaluation_sampling)
            for row in range(len(part)):
                prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
                sequences.append((prompt + batch.completion_ids[row][batch.completion_mask[row]].tolist())[:longest])
        return sequences

    def _figures(
        self,
        method: str,
        bits: Bits,
        reports: list[LayerReport],
        answers: list[Answered],
        baseline: list[Answered],
        solutions: list[Pair],
    ) -> dict[str, Any]:
        weights = sum(report.weights for report in reports)
        stored = sum(report.bits * report.weights for report in reports) / weights if weights else float(FLOAT_BITS)
        return {
            "method": method,
            "bits": str(bits),
            "bits_per_weight": stored,
            "bits_per_weight_of_model": whole_model_bits(self.policy, reports),
            "error": sum(report.error for report in reports) / len(reports) if reports else None,
            "output_error": sum(report.output_error for report in reports) / len(reports) if reports else None,
            "perplexity": self._perplexity(solutions),
            **arm_figures(answers, baseline),
            "layers": [asdict(report) for report in reports],
        }


PAPER = Paper(
    name="quantization",
    title="Quantised reasoning",
    arxiv="2504.04823",
    idea="accuracy by bits of weights, activations and cache, for RTN, GPTQ, AWQ, SmoothQuant and QuaRot",
    classes=("lightning_modules.Quantize", "callbacks.QuantizationReport"),
    configs=("quantize",),
    not_compared="it measures a policy and trains none",
)
