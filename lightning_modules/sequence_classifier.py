"""A classifier of texts: CodeT5-Authorship (arXiv 2506.17323), which names the model that wrote a program.

The pooled state h of an encoder goes through linear (768), GELU, dropout (0.2) and linear to one logit per class; the
loss is cross-entropy. Weights are float32: in bfloat16, AdamW's small updates would be lost in rounding.

    python main.py fit --config configs/authorship.yaml
    python main.py test --config configs/authorship.yaml --ckpt_path last
"""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_modules.core.posttrain_module import PosttrainModule
from objectives.classification import Confusion
from policies import PolicyParams
from policies.classifier import Classifier
from policies.encoder import Pooling
from support.errors import ConfigError
from support.papers import Paper
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]


class SequenceClassifier(PosttrainModule):
    """Learns classes of texts from rows with `text` and `label`.

    Logs loss and accuracy, and of held-out rows also weighted precision, recall and F1. `confusion` holds the matrix of
    the latest validation or test.

    Args:
        policy: the backbone: an encoder, an encoder-decoder of the T5 family, of which the encoder is used, or a
            decoder. `policy.dropout` lets its own dropout act in training, as in the paper's run.
        pooling: first is the paper's; a decoder needs last or mean.
        head_width: width of the head's inner layer. head_dropout: its dropout.
        max_length: longest text in tokens; the rest is cut off.
        labels: names of the classes; those of the data module if None.
        kwargs: optimizer and lr_scheduler, as in every module.
    """

    def __init__(
        self,
        policy: PolicyParams,
        *,
        pooling: Pooling = "first",
        head_width: int = 768,
        head_dropout: float = 0.2,
        max_length: int = 1024,
        labels: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, **kwargs)
        if head_width < 1 or not 0 <= head_dropout < 1 or max_length < 1:
            raise ConfigError(
                f"model.head_width is {head_width}, model.head_dropout {head_dropout} and model.max_length "
                f"{max_length}; the width and the length must be at least 1, the dropout from 0 to below 1."
            )
        if policy.dtype != "float32" and policy.lora is None:
            raise ConfigError(
                f"model.policy.dtype is {policy.dtype}, in which small updates are lost in rounding. Leave it float32 "
                "and set trainer.precision: bf16-mixed, which computes in bfloat16, or set model.policy.lora."
            )
        self.pooling, self.head_width, self.head_dropout = pooling, head_width, head_dropout
        self.max_length, self.labels = max_length, labels
        self.confusion: Confusion | None = None
        self._counts = torch.zeros(0)
        #: fraction of the latest training batch's texts that were cut off
        self.cut = 0.0

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The module of a checkpoint, as in Lightning, with the checkpoint's classes."""
        saved = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        return super().load_from_checkpoint(checkpoint_path, *args, **({"labels": saved.get("labels")} | kwargs))

    def configure_model(self) -> None:
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigError(
                "trainer.strategy shards the weights, which SequenceClassifier does not support; set "
                "trainer.strategy: ddp."
            )
        if getattr(self, "policy", None) is None:
            data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
            labels = self.labels or getattr(data, "labels", None)
            with isolated_rng("initialisation", run_seed()):
                self.policy = Classifier(self.policy_params, labels, self.pooling, self.head_width, self.head_dropout)
            self.labels = self.policy.labels

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["labels"] = self.labels

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("labels")
        if getattr(self, "policy", None) is not None and saved is not None and saved != self.labels:
            raise ConfigError(
                f"the checkpoint knows the classes {saved}, and the data have {self.labels}; resume with its data."
            )
        self.labels = saved
        super().on_load_checkpoint(checkpoint)

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def logits(self, rows: Rows) -> Tensor:
        """Logits of the rows' texts, (rows, classes)."""
        texts = [_column(row, "text") for row in rows]
        ids, mask = self.policy.encode(texts, self.max_length)
        self.cut = float((mask.sum(1) == self.max_length).float().mean())
        logits: Tensor = self.policy(ids, mask)
        return logits

    def targets(self, rows: Rows) -> Tensor:
        """The numbers of the rows' classes. Raises ConfigError for a class that the classifier does not have."""
        names = [_column(row, "label") for row in rows]
        if unknown := sorted(set(names) - set(self.policy.labels)):
            raise ConfigError(
                f"the data have the class {unknown[0]!r}, which is not one of {self.policy.labels}; use the data that "
                "the classifier was trained on, or drop these rows."
            )
        return torch.tensor([self.policy.labels.index(name) for name in names], device=self.device)

    def training_step(self, rows: Rows, batch_idx: int) -> Tensor:
        logits, targets = self.logits(rows), self.targets(rows)
        loss = cross_entropy(logits, targets)
        metrics = {
            "loss": loss.detach(),
            "accuracy": (logits.argmax(1) == targets).float().mean(),
            "cut": torch.tensor(self.cut, device=loss.device),
            "predicted_classes": torch.tensor(float(len(logits.argmax(1).unique())), device=loss.device),
        }
        self.log_dict(
            {f"train/{name}": value for name, value in metrics.items()},
            prog_bar=True,
            batch_size=len(rows),
            sync_dist=True,
        )
        return loss

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        classes = len(self.policy.labels)
        self._counts = torch.zeros(classes, classes, dtype=torch.float64, device=self.device)

    def _evaluate(self, rows: Rows, stage: str) -> None:
        logits, targets = self.logits(rows), self.targets(rows)
        places = targets * len(self._counts) + logits.argmax(1)
        self._counts += torch.bincount(places, minlength=self._counts.numel()).view_as(self._counts)
        self.log(f"{stage}/loss", cross_entropy(logits, targets), prog_bar=True, batch_size=len(rows), sync_dist=True)

    def _log_scores(self, stage: str) -> None:
        self.confusion = Confusion(self._counts.cpu(), self.policy.labels)  # every process has evaluated all rows
        for name, value in self.confusion.scores().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "accuracy")

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        self._evaluate(rows, "val")

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        self._evaluate(rows, "test")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    @torch.no_grad()
    def predict_step(self, rows: Rows, batch_idx: int) -> list[dict[str, Any]]:
        """The class of every text, with the probabilities of all classes."""
        probabilities = self.logits(rows).softmax(1)
        return [
            {
                "id": row.get("id"),
                "label": row.get("label"),
                "predicted": self.policy.labels[int(line.argmax())],
                "probabilities": dict(zip(self.policy.labels, line.tolist(), strict=True)),
            }
            for row, line in zip(rows, probabilities, strict=True)
        ]


def _column(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise ConfigError(
            f"SequenceClassifier needs a text as {name!r} in every row, but row {row.get('id')!r} has {sorted(row)}. "
            "Use datamodules.AuthorshipPrograms, or map the columns of your own data."
        )
    return value


PAPER = Paper(
    name="authorship",
    title="CodeT5-Authorship",
    arxiv="2506.17323",
    idea="an encoder with a small head names the model that wrote a program",
    classes=("lightning_modules.SequenceClassifier", "datamodules.AuthorshipPrograms"),
    configs=("authorship",),
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
