"""GRESO (arXiv 2506.02177): skip prompts that are predicted to give no signal, before they are rolled out.

A prompt whose completions were all right, or all wrong, in its last z visits is likely to be so again. It is skipped
with probability 1 - max(p^z, floor); p_easy and p_hard follow the fractions of such prompts that are still rolled out.
It works together with dynamic sampling (`batch.refill`): further prompts pass the same filter and come in parts of an
adapted size.

    python main.py fit --config configs/greso.yaml
"""

from itertools import takewhile
from typing import Any

import lightning as L

from callbacks.difficulty import ledger_before
from callbacks.prompt_choice import install_sampler, installed_sampler
from datamodules.samplers import GRESOSampler
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper


class GRESO(L.Callback):
    """Skip prompts that are likely to give no gradient. The defaults are the official code's, for rewards of 0 and 1.

    Needs a `DifficultyLedger` earlier in the list of callbacks, whose pass rates are the prompts' history. The ledger's
    rates, p_easy and p_hard, and the position in the data are all part of a checkpoint. Logs `train/greso_p_easy` and
    `train/greso_p_hard`, the fractions `train/greso_easy` and `train/greso_hard` of the prompts rolled out, the
    fraction `train/greso_skipped` of the prompts considered, and `train/greso_completions`, the number of completions
    sampled so far.

    Args:
        p_easy, p_hard: initial probability that a prompt is rolled out again after one visit without signal; 1 with
            step 0 never skips.
        step: change of p_easy and p_hard after every rollout from the second pass over the data on, within `limits`.
        limits: smallest and largest value of p_easy and p_hard.
        target_easy, target_hard: fractions of the prompts rolled out that may be all right or all wrong (0.25 together
            in the paper, a third of it easy).
        floor: smallest probability that a prompt is rolled out.
        easy_at, hard_at: a visit was without signal if its pass rate is at least easy_at or at most hard_at. The
            official code's 0.98 and 0.11 allow for its format reward of 0.1.
        headroom: factor in the number of further prompts per part, headroom * missing / (1 - fraction without signal).
        smallest, largest: bounds of that number (official: 64 and 384 for updates of 256); if `largest` is None, it is
            the number of prompts per rollout.
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
                f"GRESO: p_easy is {p_easy}, p_hard {p_hard}, floor {floor} and step {step}, but p_easy, p_hard and "
                "floor must be probabilities above 0 and at most 1, and step must be 0 or above. Change these "
                "arguments of callbacks.GRESO."
            )
        if not hard_at < easy_at or headroom < 1 or smallest < 1 or (largest is not None and largest < smallest):
            raise ConfigError(
                f"GRESO: hard_at is {hard_at}, easy_at {easy_at}, headroom {headroom}, smallest {smallest} and largest "
                f"{largest}, but it needs hard_at < easy_at, headroom >= 1 and 1 <= smallest <= largest. Change these "
                "arguments of callbacks.GRESO."
            )
        self.p_easy, self.p_hard, self.step, self.limits, self.floor = p_easy, p_hard, step, limits, floor
        self.target_easy, self.target_hard, self.easy_at, self.hard_at = target_easy, target_hard, easy_at, hard_at
        self.headroom, self.smallest, self.largest = headroom, smallest, largest
        self.completions = 0  # sampled so far, over all processes

    def state_dict(self) -> dict[str, Any]:
        return {"p_easy": self.p_easy, "p_hard": self.p_hard, "completions": self.completions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.p_easy, self.p_hard = state_dict["p_easy"], state_dict["p_hard"]
        self.completions = state_dict["completions"]

    def skip(self, id: str) -> float:
        """Probability of skipping a prompt: 1 - max(p^z, floor) after z consecutive visits without signal."""
        rates = [rate for _, rate in self.ledger.rates.history.get(str(id), [])][::-1]
        if z := len(list(takewhile(lambda rate: rate >= self.easy_at, rates))):
            return 1 - max(self.p_easy**z, self.floor)
        if z := len(list(takewhile(lambda rate: rate <= self.hard_at, rates))):
            return 1 - max(self.p_hard**z, self.floor)
        return 0.0

    def further(self, missing: int, without_signal: float) -> int:
        """The number of further prompts to roll out at once.

        Args:
            missing: prompts with signal that the rollout still lacks.
            without_signal: fraction of the prompts without signal so far.
        """
        wanted = int(self.headroom * missing / (1 - min(without_signal, 0.99)))
        return max(self.smallest, min(wanted, self.max_prompts))

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        def sampler(rows: list[dict[str, Any]], *draw: int) -> GRESOSampler:
            return GRESOSampler([str(row["id"]) for row in rows], *draw, skip=self.skip)

        install_sampler(trainer, stage, sampler)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.ledger = ledger_before(trainer, self)
        self.max_prompts = self.largest or max(1, pl_module.batch.prompts_per_rollout // trainer.world_size)
        pl_module.refill_size = self.further

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.sampler = installed_sampler(trainer, self, GRESOSampler)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rates = [measurement.rate for measurement in self.ledger.last]
        easy = sum(rate >= self.easy_at for rate in rates) / max(len(rates), 1)
        hard = sum(rate <= self.hard_at for rate in rates) / max(len(rates), 1)
        self.completions += len(rates) * pl_module.batch.group_size
        values = {
            "p_easy": self.p_easy,
            "p_hard": self.p_hard,
            "easy": easy,
            "hard": hard,
            "completions": float(self.completions),
        }
        for name, value in values.items():
            pl_module.log(f"train/greso_{name}", value, batch_size=1)  # already equal on all processes
        skipped = self.sampler.skipped / max(self.sampler.considered, 1)
        pl_module.log("train/greso_skipped", skipped, batch_size=1, sync_dist=trainer.world_size > 1)
        if self.sampler.passes:
            self.p_easy = self._moved(self.p_easy, easy - self.target_easy)
            self.p_hard = self._moved(self.p_hard, hard - self.target_hard)

    def _moved(self, p: float, too_many: float) -> float:
        """p one step lower where the fraction of prompts is at or above its target (too_many >= 0), else higher."""
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
        expect="Completions per rollout fall by 30 % or more against dynamic sampling, at equal accuracy on the "
        "sums that can be learned.",
        claims=(
            Claim(
                text="fewer completions than dynamic sampling",
                column="completions",
                sign=-1,
                against="dynamic sampling",
            ),
            Claim(text="at equal accuracy", column="val, four digits", sign=0, against="dynamic sampling", margin=0.03),
        ),
    ),
)
