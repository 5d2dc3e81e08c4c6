"""GRESO: prompts that gave no signal are predicted before they are rolled out, and skipped (arXiv 2506.02177).

A prompt whose completions were all right, or all wrong, in its last z visits is likely to be so again. It is passed over with probability
1 - max(p^z, floor); p_easy and p_hard follow the shares of such prompts that are still rolled out. Together with dynamic sampling
(`batch.refill`), whose further prompts pass the same filter and come in parts of an adapted size.

    python main.py fit --config configs/greso.yaml
"""

from itertools import takewhile
from typing import Any

import lightning as L

from callbacks.difficulty import DifficultyLedger
from datamodules.samplers import GRESOSampler
from support.errors import ConfigError
from support.papers import Experiment, Paper


class GRESO(L.Callback):
    """Skips prompts that are likely to teach nothing; defaults are the official code's, for rewards of 0 and 1.

    Needs a `DifficultyLedger` earlier in the list of callbacks, whose pass rates are the prompts' history. The ledger's rates, p_easy and p_hard, and
    the place in the data are all in the checkpoint. Logs `train/greso_p_easy`, `train/greso_p_hard`, the shares `train/greso_easy` and
    `train/greso_hard` of the prompts rolled out, `train/greso_skipped` of those considered, and `train/greso_completions`, all that were sampled so far.

    Args:
        p_easy, p_hard: chance at first that a prompt is rolled out again after one visit without signal; 1 with step 0 never skips.
        step: by which they move after every rollout from the second pass over the data on, within `limits`.
        target_easy, target_hard: shares of the prompts rolled out that may be all right or all wrong (0.25 together in the paper, a third of it easy).
        floor: a prompt's smallest chance to be rolled out.
        easy_at, hard_at: pass rates from which and down to which a visit was without signal. The official code's 0.98 and 0.11 allow for its format
            reward of 0.1.
        headroom: further prompts come headroom * missing / (1 - share without signal) at a time,
        smallest, largest: within these bounds (official: 64 and 384 for updates of 256); largest is the number of prompts of a rollout if None.
    """

    def __init__(
        self,
        p_easy: float = 0.5,
        p_hard: float = 0.5,
        step: float = 0.01,
        limits: tuple[float, float] = (0.05, 0.95),
        target_easy: float = 0.25 / 3,
        target_hard: float = 0.25 * 2 / 3,
        floor: float = 0.01,
        easy_at: float = 1.0,
        hard_at: float = 0.0,
        headroom: float = 1.25,
        smallest: int = 1,
        largest: int | None = None,
    ) -> None:
        if not (0 < p_easy <= 1 and 0 < p_hard <= 1 and 0 < floor <= 1 and step >= 0):
            raise ConfigError(
                f"GRESO: p_easy, p_hard and floor are chances above 0 and at most 1, step is 0 or more; got {p_easy}, {p_hard}, {floor}, {step}."
            )
        if not hard_at < easy_at or headroom < 1 or smallest < 1 or (largest is not None and largest < smallest):
            raise ConfigError(
                f"GRESO: needs hard_at < easy_at, headroom >= 1 and 1 <= smallest <= largest, got {hard_at}, {easy_at}, {headroom}, {smallest}, {largest}."
            )
        self.p_easy, self.p_hard, self.step, self.limits, self.floor = p_easy, p_hard, step, limits, floor
        self.target_easy, self.target_hard, self.easy_at, self.hard_at = target_easy, target_hard, easy_at, hard_at
        self.headroom, self.smallest, self.largest = headroom, smallest, largest
        self.completions = 0  # sampled so far, over all processes

    def state_dict(self) -> dict[str, Any]:
        return {"p_easy": self.p_easy, "p_hard": self.p_hard, "completions": self.completions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.p_easy, self.p_hard, self.completions = (
            state_dict["p_easy"],
            state_dict["p_hard"],
            state_dict["completions"],
        )

    def skip(self, id: str) -> float:
        """Probability of passing a prompt over: 1 - max(p^z, floor) after z visits without signal in a row."""
        rates = [rate for _, rate in self.ledger.rates.history.get(str(id), [])][::-1]
        if z := len(list(takewhile(lambda rate: rate >= self.easy_at, rates))):
            return 1 - max(self.p_easy**z, self.floor)
        if z := len(list(takewhile(lambda rate: rate <= self.hard_at, rates))):
            return 1 - max(self.p_hard**z, self.floor)
        return 0.0

    def further(self, missing: int, without_signal: float) -> int:
        """How many further prompts to roll out at once for so many that are missing."""
        wanted = int(self.headroom * missing / (1 - min(without_signal, 0.99)))
        return max(self.smallest, min(wanted, self.most))

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None and hasattr(data, "sampler"):
            data.sampler = lambda rows, *draw: GRESOSampler([str(row["id"]) for row in rows], *draw, skip=self.skip)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        before = trainer.callbacks[: trainer.callbacks.index(self)]
        ledgers = [callback for callback in before if isinstance(callback, DifficultyLedger)]
        if not ledgers:
            raise ConfigError(
                "GRESO reads measured pass rates; put callbacks.DifficultyLedger before it in trainer.callbacks."
            )
        self.ledger = ledgers[0]
        self.most = self.largest or max(1, pl_module.batch.prompts_per_rollout // trainer.world_size)
        pl_module.refill_size = self.further

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        sampler = getattr(trainer.train_dataloader, "prompt_sampler", None)
        if not isinstance(sampler, GRESOSampler):
            raise ConfigError(
                f"GRESO passes over prompts in a GRESOSampler, but the training prompts come from {type(sampler).__name__}; use a data module of this "
                "project, and no other callback that chooses prompts."
            )
        self.sampler = sampler

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rates = [measurement.rate for measurement in self.ledger.last]
        easy = sum(rate >= self.easy_at for rate in rates) / max(len(rates), 1)
        hard = sum(rate <= self.hard_at for rate in rates) / max(len(rates), 1)
        self.completions += len(rates) * pl_module.batch.group_size
        shares = {
            "p_easy": self.p_easy,
            "p_hard": self.p_hard,
            "easy": easy,
            "hard": hard,
            "completions": float(self.completions),
        }
        for name, value in shares.items():
            pl_module.log(f"train/greso_{name}", value, batch_size=1)  # equal on all processes already
        skipped = self.sampler.skipped / max(self.sampler.considered, 1)
        pl_module.log("train/greso_skipped", skipped, batch_size=1, sync_dist=trainer.world_size > 1)
        if self.sampler.passes:
            self.p_easy, self.p_hard = (
                self._moved(self.p_easy, easy - self.target_easy),
                self._moved(self.p_hard, hard - self.target_hard),
            )

    def _moved(self, p: float, too_many: float) -> float:
        if not self.step:
            return p
        return min(self.limits[1], max(self.limits[0], p + (-self.step if too_many >= 0 else self.step)))


PAPER = Paper(
    name="greso",
    title="GRESO",
    arxiv="2506.02177",
    idea="prompts without signal are skipped before the rollout, on any on-policy method",
    classes=("callbacks.GRESO",),
    configs=("greso",),
    effect="37 % fewer completions than dynamic sampling, same pass@1",
    comparison={"model.batch.refill": 1},
    experiment=Experiment(
        rollouts=40,
        arms={
            "greso": {},
            "dynamic sampling": {
                "trainer.callbacks": [
                    {"class_path": "callbacks.DifficultyLedger"},
                    {"class_path": "callbacks.GRESO", "init_args": {"p_easy": 1.0, "p_hard": 1.0, "step": 0.0}},
                ]
            },
            "grpo": {"model.batch.refill": 0, "trainer.callbacks": []},
        },
        columns={
            "val, four digits": "val/pass1/addition-4",
            "completions": "train/greso_completions",
            "no signal": "train/no_signal",
        },
        expect="Completions per rollout fall by 30 % or more against dynamic sampling, at equal accuracy on the sums that "
        "can be learned.",
    ),
)
