"""SATURN's curriculum (arXiv 2505.16368): move to the next level once the current level's held-out problems are solved
often enough."""

from typing import Any

import lightning as L

from callbacks.prompt_choice import install_sampler, installed_sampler
from datamodules import CurriculumSampler
from datamodules.saturn import difficulty
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from tracking.runs import mlflow_runs


class SaturnCurriculum(L.Callback):
    """Draw training prompts from one level of `SaturnPrompts`; after a validation with pass@1 above eps at that level,
    move to the next higher difficulty D.

    The paper validates every 250 training samples: set trainer.val_check_interval to 250 / batch.prompts_per_rollout.
    The level is part of the sampler's state, the promotions are part of this callback's; a checkpoint has both. Logs
    `train/curriculum_level`, `train/sat_difficulty`, `train/sat_chance` (pass@1 of blind guesses),
    `train/format_failures` and `val/format_failures` (fraction of completions without a box).

    Args:
        eps: pass@1 on the level's held-out problems that must be exceeded: 0.5 in the paper for 1.5B, 0.75 for 7B.
    """

    def __init__(self, eps: float = 0.5) -> None:
        if not 0 <= eps < 1:
            raise ConfigError(
                f"SaturnCurriculum: eps is {eps}; it is a threshold on pass@1 and must be at least 0 and below 1."
            )
        self.eps = eps
        self.promotions: list[dict[str, Any]] = []  # {"rollout", "level" before the promotion, "pass@1", "chance"}

    def state_dict(self) -> dict[str, Any]:
        return {"promotions": self.promotions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.promotions = state_dict["promotions"]

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        install_sampler(trainer, stage, self._sampler)

    def _sampler(
        self, rows: list[dict[str, Any]], batch_size: int, seed: int, rank: int, processes: int
    ) -> CurriculumSampler:
        return CurriculumSampler([row.get("level") for row in rows], batch_size, seed, rank, processes, rehearsal=0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        judges = [reward for reward in getattr(pl_module, "rewards", []) if reward.is_correctness]
        if not hasattr(data, "difficulties") or not judges:
            raise ConfigError(
                "SaturnCurriculum needs datamodules.SaturnPrompts as data and rewards.SatAssignment in model.rewards, "
                "and this run lacks one of them; set both as in configs/saturn.yaml."
            )
        self.levels, self.judge = data.levels, judges[0].name
        self.chances = [
            sum(row["chance"] for row in data.rows("val") if row["level"] == number) / data.val_size
            for number in range(len(self.levels))
        ]
        self.sampler = installed_sampler(trainer, self, CurriculumSampler)

    def _failures(self, rollouts: list[Any]) -> float:
        """Fraction of completions with a negative score, which means that they have no box."""
        scores: list[float] = [score for rollout in rollouts for score in rollout.rewards[self.judge].tolist()]
        return sum(score < 0 for score in scores) / len(scores)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rollout = pl_module.last_sampled
        values = {
            "curriculum_level": float(self.sampler.level),
            "sat_difficulty": difficulty(*self.levels[self.sampler.level]),
            "sat_chance": sum(row["chance"] for row in rollout.rows) / len(rollout.rows),
            "format_failures": self._failures([rollout]),
        }
        for name, value in values.items():
            pl_module.log(f"train/{name}", value, batch_size=len(rollout.rows), sync_dist=trainer.world_size > 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.last_validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            pl_module.log(
                "val/format_failures", self._failures(pl_module.last_validation), sync_dist=trainer.world_size > 1
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Before the first rollout the policy has not been trained at this level.
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.global_step:
            return
        level = self.sampler.level
        rate = float(trainer.callback_metrics["val/pass@1/sat-{}-{}-{}".format(*self.levels[level])])
        if rate > self.eps and self.sampler.move(1):
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self.promotions.append({"rollout": done, "level": level, "pass@1": rate, "chance": self.chances[level]})
            if trainer.is_global_zero:
                print(
                    f"SATURN: {self.levels[level]} -> {self.levels[level + 1]} after rollout {done}, pass@1 {rate:.2f}",
                    flush=True,
                )
            for client, run in mlflow_runs(trainer):
                client.set_tag(run, f"saturn.{len(self.promotions)}", str(self.promotions[-1]))


PAPER = Paper(
    name="saturn",
    title="SATURN",
    arxiv="2505.16368",
    idea="SAT problems with a curriculum over their difficulty",
    classes=("callbacks.SaturnCurriculum", "datamodules.SaturnPrompts", "rewards.SatAssignment"),
    configs=("saturn",),
    effect="the level advances two or three times; pass@1 on the first 0.46 → 0.70",
    not_compared="its task is SAT problems",
    experiment=Experiment(
        rollouts=100,
        arms={"saturn": {}, "grpo": {"trainer.callbacks": []}},
        columns={
            "pass@1 (2,3,3)": "val/pass1/sat-2-3-3",
            "pass@1 (2,3,4)": "val/pass1/sat-2-3-4",
            "pass@1 (2,3,5)": "val/pass1/sat-2-3-5",
            "pass@1 (2,3,6)": "val/pass1/sat-2-3-6",
            "level": "train/curriculum_level",
        },
        expect="The level advances at least twice, at a pass@1 of 20 points above a blind guess's.",
        validate_every=10,  # validations decide when the level advances
        claims=(
            Claim(text="pass@1 rises at the hardest level", column="pass@1 (2,3,6)", sign=1, against="start"),
            Claim(text="a curriculum is better than all levels at once", column="pass@1 (2,3,6)", sign=1),
        ),
    ),
)
