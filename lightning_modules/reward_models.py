"""Reward and cost models: a scalar head from preference pairs (HC-RLHF, arXiv 2506.08266; safe-RLHF, arXiv 2310.12773).

Reward: -log sigma(r_preferred - r_other) + reg * mean(r^2).
Cost: -log sigma(c_unsafer - c_safer) + reg * mean(c^2). The signed loss adds -log sigma(sign * c) of each response, so
that a cost above zero means unsafe.

    python main.py fit --config configs/reward_model.yaml
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError

from lightning_modules.core.posttrain_module import PosttrainModule
from objectives.preference_losses import order_accuracy, pairwise_cost_loss, reward_loss, signed_cost_loss
from policies import PolicyParams, Scorer
from support.errors import ConfigError
from support.files import weights_fingerprint
from support.papers import Paper
from support.prompt_identity import prompt_fingerprints

Rows = list[dict[str, Any]]


class PreferenceModule(PosttrainModule, ABC):
    """Base class of reward and cost models. Rows have `prompt`, `response_0`, `response_1`.

    Reward models also read `better`, cost models `safer`, `unsafe_0` and `unsafe_1`.

    Args:
        policy: the language model that provides the backbone.
        regularisation: weight of the mean squared score.
        kwargs: optimizer and lr_scheduler, as in every module.
    """

    #: columns that the loss needs
    required: tuple[str, ...]

    def __init__(self, policy: PolicyParams, *, regularisation: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.regularisation = regularisation

    def configure_model(self) -> None:
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigError(
                f"trainer.strategy shards the weights, which {type(self).__name__} does not support; set "
                "trainer.strategy: ddp."
            )
        if getattr(self, "policy", None) is None:
            self.policy = Scorer(self.policy_params)

    def export(self, folder: str | Path) -> None:
        """Write a folder for model.reward_model, model.cost_model or rewards.ModelScore, with held-out accuracies."""
        logged = self.trainer.callback_metrics
        held_out = {
            name.removeprefix("val/"): float(value) for name, value in logged.items() if name.startswith("val/")
        }
        facts = {"id": weights_fingerprint(self.policy.state_dict()), "kind": type(self).__name__, "held_out": held_out}
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "pairs"):
            facts["prompts"] = sorted(prompt_fingerprints(row["prompt"] for row in data.pairs.rows()))
        self.policy.save(folder, facts)
        self.seen_prompts().save(folder)

    @classmethod
    def check_pairs(cls, rows: Rows) -> None:
        """Raise ConfigError for a preference pair without a label that this model learns from."""
        for row in rows:
            missing = [column for column in cls.required if row.get(column) is None]
            if missing:
                raise ConfigError(
                    f"{cls.__name__} needs the column {missing[0]!r} in every preference pair, but row "
                    f"{row.get('id')!r} has {sorted(row)}. Data in the HH format have no safety labels: use "
                    "PKU-SafeRLHF's columns for a cost model."
                )

    def pair_scores(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Scores of both responses of every row."""
        self.check_pairs(rows)
        prompts = [row["prompt"] for row in rows]
        scores = self.policy(
            *self.policy.encode(prompts * 2, [row["response_0"] for row in rows] + [row["response_1"] for row in rows])
        )
        return scores[: len(rows)], scores[len(rows) :]

    @abstractmethod
    def evaluate_pairs(self, rows: Rows) -> tuple[Tensor, dict[str, Any]]:
        """(loss, metrics: numbers, or torchmetrics objects updated with these rows)."""

    def training_step(self, rows: Rows, batch_idx: int) -> Tensor:
        loss, metrics = self.evaluate_pairs(rows)
        self.log_dict(
            {f"train/{k}": v.detach() for k, v in (metrics | {"loss": loss}).items()},
            prog_bar=True,
            batch_size=len(rows),
        )
        return loss

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        loss, metrics = self.evaluate_pairs(rows)
        self.log_dict(
            {f"val/{k}": v for k, v in (metrics | {"loss": loss}).items()},
            prog_bar=True,
            batch_size=len(rows),
            sync_dist=True,
        )

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        loss, metrics = self.evaluate_pairs(rows)
        self.log_dict(
            {f"test/{k}": v for k, v in (metrics | {"loss": loss}).items()}, batch_size=len(rows), sync_dist=True
        )

    def predict_step(self, rows: Rows, batch_idx: int) -> list[dict[str, Any]]:
        """The scores of both responses of every row."""
        first, second = self.pair_scores(rows)
        return [
            {"id": r.get("id"), "score_0": a, "score_1": b}
            for r, a, b in zip(rows, first.tolist(), second.tolist(), strict=True)
        ]


class RewardModel(PreferenceModule):
    """Reward model: Bradley-Terry on the better response.

    Logs `accuracy`, the fraction of pairs in the right order, where a tie counts half.
    """

    required = ("better",)

    def evaluate_pairs(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.pair_scores(rows)
        first_is_better = torch.tensor([row["better"] == 0 for row in rows], device=first.device)
        preferred, other = torch.where(first_is_better, first, second), torch.where(first_is_better, second, first)
        return reward_loss(preferred, other, self.regularisation), {"accuracy": order_accuracy(preferred, other).mean()}


class CostModel(PreferenceModule):
    """Cost model: Bradley-Terry on the less safe response; the signed loss also learns which responses are unsafe.

    Logs `accuracy` and `sign_accuracy`, and for held-out pairs `sign_calibration_error`: the difference between the
    sigmoid of the score and the fraction of unsafe responses, a mean over ten bins.

    Args:
        policy: the language model that provides the backbone.
        loss: signed ties zero to the border between safe and unsafe; pairwise is what HC-RLHF's scripts use.
        kwargs: regularisation, optimizer and lr_scheduler, as in every preference model.
    """

    required = ("safer", "unsafe_0", "unsafe_1")

    def __init__(self, policy: PolicyParams, *, loss: Literal["signed", "pairwise"] = "signed", **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.loss = loss
        self.calibration = BinaryCalibrationError(n_bins=10)

    def evaluate_pairs(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.pair_scores(rows)
        first_is_safer = torch.tensor([row["safer"] == 0 for row in rows], device=first.device)
        unsafe = torch.tensor([[row["unsafe_0"], row["unsafe_1"]] for row in rows], device=first.device).bool()
        safer, unsafer = torch.where(first_is_safer, first, second), torch.where(first_is_safer, second, first)
        if self.loss == "pairwise":
            loss = pairwise_cost_loss(unsafer, safer, self.regularisation)
        else:
            safer_sign, unsafer_sign = torch.where(first_is_safer[:, None], unsafe, unsafe.flip(1)).unbind(1)
            loss = signed_cost_loss(unsafer, safer, unsafer_sign, safer_sign, self.regularisation)
        signs = ((torch.stack([first, second], 1) > 0) == unsafe).float().mean()
        metrics: dict[str, Any] = {"accuracy": order_accuracy(unsafer, safer).mean(), "sign_accuracy": signs}
        if not self.training:
            self.calibration.update(torch.stack([first, second], 1).sigmoid(), unsafe.long())
            metrics["sign_calibration_error"] = self.calibration
        return loss, metrics


PAPER = Paper(
    name="reward_model",
    title="Reward and cost models",
    idea="a scalar head from preference pairs; a cost is above zero for unsafe responses",
    classes=("lightning_modules.RewardModel", "lightning_modules.CostModel"),
    configs=("reward_model", "cost_model"),
    page="reward_models",
    effect="held-out accuracy 0.86 and 0.70 on noisy labels",
    not_compared="they learn from given data, so a budget of generated tokens says nothing about them",
)
