"""LASER-D's targets, from what the policy does on a fixed set of prompts (arXiv 2505.15612)."""

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

Group = tuple[int, list[int]]  # right completions of a prompt, and the lengths of all


def difficulty(right: int, samples: int) -> str:
    """hard up to one third right, medium up to two thirds, else easy; the reward's own boundaries belong to the other side."""
    return "hard" if 3 * right <= samples else "medium" if 3 * right <= 2 * samples else "easy"


def target_length(lengths: Sequence[int], expected: int, candidates: Sequence[int]) -> int | None:
    """The smallest candidate l with P(length <= l) * expected >= 1, None if there is none.

    Args:
        lengths: of all completions of one difficulty, right or wrong. expected: |C|, the right completions that a group of it has.
    """
    for candidate in sorted(candidates):
        if lengths and sum(length <= candidate for length in lengths) * expected >= len(lengths):
            return candidate
    return None


class LaserMonitor(L.Callback):
    """Samples a fixed part of the training prompts before the first rollout and then every n, and gives `rewards.LaserD` its new targets.

    Neither the order of the prompts nor the draws of a rollout change. What it samples comes on top of the rollouts: `train/laser_monitor_tokens`. Logs also
    the share of each difficulty; the curves of coverage are figures/laser_coverage.png.

    Args:
        every_n_rollouts: 20 in the authors' code.
        size: prompts, 500 there. samples: completions of each; theirs is the group size, 8.
        shortest, longest, interval: the candidates, in tokens: 1024, 2048 or 4096 to 16384 in steps of 1024 there.
        counts: right completions expected of a group, of which a target must cover one: of K samples 2K/3, K/3 and 1, rounded down (the code: 5, 2, 1 of 8)
            or up (the paper: 6, 3, 1).
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
                f"LaserMonitor: needs every_n_rollouts >= 1, size >= 1 and samples >= 3, got {every_n_rollouts}, {size} and {samples}."
            )
        if not 1 <= shortest <= longest or interval < 1:
            raise ConfigError(
                f"LaserMonitor: needs 1 <= shortest <= longest and interval >= 1, got {shortest}, {longest} and {interval}."
            )
        self.every_n_rollouts, self.size, self.samples = every_n_rollouts, size, samples
        self.candidates = range(shortest, longest + 1, interval)
        up = counts == "ceil"
        self.expected = {"easy": (2 * samples + 2 * up) // 3, "medium": (samples + 2 * up) // 3, "hard": 1}
        self.groups: list[Group] = []  # of the newest measurement, over all processes
        self.tokens = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        found = [reward for reward in pl_module.rewards if hasattr(reward, "targets")]
        if not found:
            raise ConfigError(
                "LaserMonitor gives targets to rewards.LaserD or LaserDE; list one of them in model.rewards, or leave the callback out."
            )
        if not hasattr(getattr(trainer, "datamodule", None), "rows"):
            raise ConfigError(
                "LaserMonitor samples training prompts, so it needs a data module such as datamodules.FilePrompts."
            )
        self.reward = found[0]
        rows = trainer.datamodule.rows("train")
        chosen = random.Random(derive_seed("laser monitor", trainer.datamodule.seed)).sample(
            range(len(rows)), min(self.size, len(rows))
        )
        self.rows = [rows[index] for index in chosen]
        if len(self.rows) < trainer.world_size:
            raise ConfigError(
                f"LaserMonitor: size is {len(self.rows)} prompts, which {trainer.world_size} processes cannot share."
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
        """This process's share of the prompts."""
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
            found = [difficulty(right, self.samples) for right, _ in self.groups]
            values |= {f"laser_monitor/{bucket}": found.count(bucket) / len(found) for bucket in self.expected}
        for name, value in values.items():
            pl_module.log(f"train/{name}", value, batch_size=1)  # equal on all processes already

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        for client, run in mlflow_runs(trainer) if self.groups else []:
            client.log_figure(run, self.figure(), "figures/laser_coverage.png")

    def figure(self) -> Figure:
        """Expected right completions within a length, ECR, for each difficulty; a target is where its curve reaches 1."""
        figure = Figure(figsize=(6.0, 3.4), layout="constrained")
        panel = figure.subplots()
        for bucket, expected in self.expected.items():
            if lengths := self._lengths(bucket):
                share = [sum(length <= candidate for length in lengths) / len(lengths) for candidate in self.candidates]
                panel.plot(list(self.candidates), [expected * p for p in share], marker=".", label=bucket)
        panel.axhline(1.0, color="grey", linewidth=0.8)
        panel.set(xlabel="tokens", ylabel="right completions expected within")
        panel.legend(fontsize=8)
        return figure
