"""LASER-D's target lengths, measured on the policy's completions of a fixed set of prompts (arXiv 2505.15612)."""

import random
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from matplotlib.figure import Figure

from support.errors import ConfigError
from support.processes import gathered
from support.seeding import derive_seed, isolated_rng, run_seed
from tracking.runs import mlflow_runs

Group = tuple[int, list[int]]  # number of right completions of a prompt, and the lengths of all its completions


def difficulty(right: int, samples: int) -> str:
    """ "hard" up to one third right, "medium" up to two thirds, else "easy".

    The reward assigns a group that lies exactly on a boundary to the other side.
    """
    return "hard" if 3 * right <= samples else "medium" if 3 * right <= 2 * samples else "easy"


def target_length(lengths: Sequence[int], expected: int, candidates: Sequence[int]) -> int | None:
    """The smallest candidate l with P(length <= l) * expected >= 1; None if all are too short.

    Args:
        lengths: lengths in tokens of all completions of one difficulty, right or wrong.
        expected: |C|, the expected number of right completions per group of this difficulty.
        candidates: target lengths to choose from, in tokens.
    """
    for candidate in sorted(candidates):
        if lengths and sum(length <= candidate for length in lengths) * expected >= len(lengths):
            return candidate
    return None


class LaserMonitor(L.Callback):
    """Sample a fixed subset of the training prompts before the first rollout and then every n, and set the targets of
    `rewards.LaserD`.

    Neither the order of the prompts nor the random draws of a rollout change. The sampled tokens come on top of the
    rollouts and are logged as `train/laser_monitor_tokens`. Logs also the fraction of each difficulty; the curves of
    coverage are figures/laser_coverage.png.

    Args:
        every_n_rollouts: rollouts between two measurements; 20 in the authors' code.
        size: number of prompts; 500 in the authors' code.
        samples: completions per prompt; in the authors' code the group size, 8.
        shortest, longest, interval: candidate targets, in tokens; in the authors' code from 1024, 2048 or 4096 to 16384
            in steps of 1024.
        counts: expected number of right completions per group, of which a target must cover one: of K samples 2K/3, K/3
            and 1, rounded down (the code: 5, 2, 1 of 8) or up (the paper: 6, 3, 1).
    """

    def __init__(
        self,
        every_n_rollouts: int = 20,
        size: int = 500,
        samples: int = 8,
        shortest: int = 1024,
        longest: int = 16384,
        interval: int = 1024,
        counts: Literal["floor", "ceil"] = "floor",
    ) -> None:
        if every_n_rollouts < 1 or size < 1 or samples < 3:
            raise ConfigError(
                f"LaserMonitor: every_n_rollouts is {every_n_rollouts}, size {size} and samples {samples}, but it "
                "needs every_n_rollouts >= 1, size >= 1 and samples >= 3. Change these arguments of "
                "callbacks.LaserMonitor."
            )
        if not 1 <= shortest <= longest or interval < 1:
            raise ConfigError(
                f"LaserMonitor: shortest is {shortest}, longest {longest} and interval {interval}, but it needs "
                "1 <= shortest <= longest and interval >= 1. Change these arguments of callbacks.LaserMonitor."
            )
        self.every_n_rollouts, self.size, self.samples = every_n_rollouts, size, samples
        self.candidates = range(shortest, longest + 1, interval)
        up = counts == "ceil"
        self.expected = {"easy": (2 * samples + 2 * up) // 3, "medium": (samples + 2 * up) // 3, "hard": 1}
        self.groups: list[Group] = []  # of the latest measurement, over all processes
        self.tokens = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        targeted_rewards = [reward for reward in pl_module.rewards if hasattr(reward, "targets")]
        if not targeted_rewards:
            raise ConfigError(
                "LaserMonitor sets the targets of rewards.LaserD or rewards.LaserDE, but model.rewards has neither. "
                "Add one of them, or remove LaserMonitor from trainer.callbacks."
            )
        if not hasattr(getattr(trainer, "datamodule", None), "rows"):
            raise ConfigError(
                "LaserMonitor samples training prompts, but the data module has no method `rows`; use one of this "
                "project, such as datamodules.FilePrompts."
            )
        self.reward = targeted_rewards[0]
        rows = trainer.datamodule.rows("train")
        rng = random.Random(derive_seed("laser monitor", trainer.datamodule.seed))
        self.rows = [rows[index] for index in rng.sample(range(len(rows)), min(self.size, len(rows)))]
        if len(self.rows) < trainer.world_size:
            raise ConfigError(
                f"LaserMonitor: {len(self.rows)} prompts cannot be shared by {trainer.world_size} processes; raise "
                "LaserMonitor.size or the number of training rows to at least the number of processes."
            )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.tokens = 0
        if pl_module.rollouts_done % self.every_n_rollouts:
            return
        self.groups = [group for part in gathered(self._measure(trainer, pl_module)) for group in part]
        self.tokens = sum(sum(lengths) for _, lengths in self.groups)
        pl_module.generated_tokens += self.tokens
        for bucket, expected in self.expected.items():
            self.reward.targets[bucket] = target_length(self._lengths(bucket), expected, self.candidates)
        if trainer.is_global_zero:
            print(f"LASER-D's targets from rollout {pl_module.rollouts_done}: {self.reward.targets}", flush=True)

    @torch.no_grad()
    def _measure(self, trainer: L.Trainer, module: Any) -> list[Group]:
        """Measure this process's part of the prompts."""
        with isolated_rng("laser monitor", run_seed(), module.rollouts_done):
            batch = module.sample(self.rows[trainer.global_rank :: trainer.world_size], self.samples, module.sampling)
            batch.rewards = module.score(batch)
        right = self.reward.correct(batch).view(-1, self.samples).sum(1).tolist()
        return list(zip(right, batch.lengths.view(-1, self.samples).tolist(), strict=True))

    def _lengths(self, bucket: str) -> list[int]:
        return [
            length for right, lengths in self.groups if difficulty(right, self.samples) == bucket for length in lengths
        ]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        values = {"laser_monitor_tokens": float(self.tokens)}
        if self.tokens:
            buckets = [difficulty(right, self.samples) for right, _ in self.groups]
            values |= {f"laser_monitor/{bucket}": buckets.count(bucket) / len(buckets) for bucket in self.expected}
        for name, value in values.items():
            pl_module.log(f"train/{name}", value, batch_size=1)  # already equal on all processes

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        for client, run in mlflow_runs(trainer) if self.groups else []:
            client.log_figure(run, self.figure(), "figures/laser_coverage.png")

    def figure(self) -> Figure:
        """Expected number of right completions within a length (ECR) per difficulty; a target is where a curve reaches
        1."""
        figure = Figure(figsize=(6.0, 3.4), layout="constrained")
        panel = figure.subplots()
        for bucket, expected in self.expected.items():
            if lengths := self._lengths(bucket):
                coverage = [sum(length <= limit for length in lengths) / len(lengths) for limit in self.candidates]
                panel.plot(list(self.candidates), [expected * p for p in coverage], marker=".", label=bucket)
        panel.axhline(1.0, color="grey", linewidth=0.8)
        panel.set(xlabel="length in tokens", ylabel="expected right completions within it")
        panel.legend(fontsize=8)
        return figure
