"""Preference tuning on given responses: DPO, IPO, SimPO, ORPO, REDI on pairs, KTO on labelled responses.

objectives/preference_objectives.py has the losses. Every prompt is computed once for its responses, and log-probs are
computed over the vocabulary in tiles, as in the updates of rollouts.

    python main.py fit --config configs/dpo.yaml
"""

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lightning_modules.core.part_types import check_part
from lightning_modules.core.posttrain_module import PosttrainModule
from lightning_modules.core.reference_sums import reference_sums
from objectives.preference_losses import order_accuracy
from objectives.preference_objectives import DPO, KTO, PairLoss, PreferenceLoss, ResponseScores
from policies import Policy, PolicyParams, PromptGroups
from policies.supervised import check_row_length, encode_response
from support.errors import ConfigError
from support.files import fingerprint
from support.processes import gathered, summed

Rows = list[dict[str, Any]]
#: metric -> (sum, number of its terms)
Sums = dict[str, tuple[Tensor, Tensor]]


class Preference(PosttrainModule):
    """Learns from preferred and rejected responses.

    Rows of losses on pairs have `prompt`, `response_0`, `response_1` and `better` (0 or 1), those of KTO `prompt`,
    `response` and `desirable` (true or false). Responses end with the end token; a false `ended_0`, `ended_1` or
    `ended` marks one that was cut off. Logs the mean implicit rewards, their margin, the fraction of pairs in the right
    order, and the mean log-prob per token of preferred and rejected responses, which may both fall while the margin
    rises.

    Args:
        policy: the model to train.
        loss: the objective; it decides whether there is a reference.
        reference: model keeps the start beside the policy (under LoRA the model without its adapter, else a copy);
            precomputed computes its log-probs once before training and caches them.
        max_length: maximum length of a prompt with one response, in tokens; a longer row is an error.
        kwargs: optimizer and lr_scheduler, as in every module.
    """

    no_reference = ("another model.loss or model.reference", "Set both as they were")

    def __init__(
        self,
        policy: PolicyParams,
        *,
        loss: PreferenceLoss = DPO(),
        reference: Literal["model", "precomputed"] = "model",
        max_length: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, **kwargs)
        check_part(self, "loss", loss, PreferenceLoss, "objectives.DPO(beta=0.1)")
        if reference == "precomputed" and isinstance(loss, KTO):
            raise ConfigError(
                "model.reference is precomputed, but KTO also compares prompts with the responses of other prompts of "
                "the batch, which are not known before. Set model.reference to model."
            )
        self.loss, self.reference, self.max_length = copy.deepcopy(loss), reference, max_length
        self.with_reference = loss.needs_reference and reference == "model"
        self._reference_sums: dict[str, Tensor] = {}  # by fingerprint of a data row

    # ---- before the first step ---------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self._prepare("train_data", "val_data")

    def on_validation_start(self) -> None:
        if not self._fits:
            self._prepare("val_data")

    on_test_start = on_predict_start = on_validation_start

    def _prepare(self, *splits: str) -> None:
        """Check all rows of the data module, and compute what the reference says about them."""
        data = getattr(self.trainer, "datamodule", None)
        rows = [row for split in splits for row in getattr(data, split, [])]
        for row in rows:
            self._check_columns(row)
            # A token has at least one byte, so short rows fit without being encoded.
            if len(str(row).encode()) + 256 > self.max_length:
                self.groups(self.policy, [row])
        if not self.loss.needs_reference or self.reference == "model":
            return
        if not rows:
            raise ConfigError(
                "model.reference is precomputed, but the data do not say before training which rows there are. Use a "
                "data module such as datamodules.PreferencePairs, or set model.reference to model."
            )
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigError(
                "model.reference is precomputed, which loads the whole reference on every process, but "
                "trainer.strategy shards the weights. Set model.reference to model, whose copy is in shards too."
            )
        sums = reference_sums(
            replace(self.policy_params, compute=self.policy.compute),
            rows,
            self.groups,
            device=self.trainer.strategy.root_device,
            precision=self.trainer.precision_plugin.forward_context,
            precision_name=self.precision,
            rank=self.trainer.global_rank,
        )
        self._reference_sums = {_key(row): values for row, values in zip(rows, sums, strict=True)}

    @property
    def _columns(self) -> tuple[str, ...]:
        return ("response_0", "response_1", "better") if isinstance(self.loss, PairLoss) else ("response", "desirable")

    def _check_columns(self, row: dict[str, Any]) -> None:
        """Refuse a row without a column of the loss. Raises ConfigError."""
        missing = [name for name in ("prompt", *self._columns) if row.get(name) is None]
        if missing:
            module = "PreferencePairs" if isinstance(self.loss, PairLoss) else "LabelledResponses"
            raise ConfigError(
                f"{type(self.loss).__name__} needs the column {missing[0]!r} in every row, but row {row.get('id')!r} "
                f"has {sorted(row)}. Use datamodules.{module}, or another model.loss."
            )

    # ---- log-probs ---------------------------------------------------------------------------------------------------

    def groups(self, policy: Policy, rows: Rows) -> PromptGroups:
        """All preferred responses, then all rejected ones, each prompt once; of KTO's rows the only responses.

        Raises:
            ConfigError: for a row that lacks a column or is too long.
        """
        prompts, sides = [], []
        for row in rows:
            self._check_columns(row)
            prompts.append(policy.encode(row["prompt"]))
            sides.append([encode_response(policy, row[name], bool(row.get(flag, True))) for name, flag in _sides(row)])
            check_row_length(self.policy, row, len(prompts[-1]) + max(map(len, sides[-1])), self.max_length)
        responses = [ids for side in zip(*sides, strict=True) for ids in side]
        owner = [place for _ in sides[0] for place in range(len(rows))]
        return PromptGroups.of(prompts, responses, policy.pad_token_id, policy.device, owner)

    def _scores(self, rows: Rows, groups: PromptGroups) -> list[ResponseScores]:
        """Scores of preferred and rejected responses, or of the only ones."""
        totals = _sums(self.policy.logprobs(groups)[0], groups)
        tokens = groups.completion_mask.sum(1).to(totals.dtype)
        sides = len(totals) // len(rows)
        reference = prompts = None
        if self.loss.needs_reference:
            reference = self._reference_of(rows, groups).chunk(sides)
        if self.loss.needs_prompts:
            prompts = self._prompt_scores(groups)
        return [
            ResponseScores(
                total,
                count,
                None if reference is None else reference[side],
                *(() if prompts is None else prompts),
            )
            for side, (total, count) in enumerate(zip(totals.chunk(sides), tokens.chunk(sides), strict=True))
        ]

    def _prompt_scores(self, groups: PromptGroups) -> tuple[Tensor, Tensor]:
        """(sum, number) of the log-probs of every prompt's tokens behind its first."""
        ids = [prompt[mask].tolist() for prompt, mask in zip(groups.prompt_ids, groups.prompt_mask, strict=True)]
        rest = PromptGroups.of(
            [prompt[:1] for prompt in ids], [prompt[1:] for prompt in ids], self.policy.pad_token_id, self.device
        )
        totals = _sums(self.policy.logprobs(rest)[0], rest)
        return totals, rest.completion_mask.sum(1).to(totals.dtype)

    def _reference_of(self, rows: Rows, groups: PromptGroups) -> Tensor:
        if self.reference == "model":
            return _sums(self.policy.reference_logprobs(groups), groups)
        try:
            sums = torch.stack([self._reference_sums[_key(row)] for row in rows], 1)
        except KeyError:
            raise ConfigError(
                "model.reference is precomputed, but a batch holds a row that the data module did not have before "
                "training. Set model.reference to model."
            ) from None
        return sums.flatten().to(self.device)

    @torch.no_grad()
    def _baseline(self, groups: PromptGroups) -> Tensor:
        """KTO's z: max(0, mean of log pi - log pi_ref over prompts with the response of the prompt before).

        The batch is the one of all processes, so that their number changes nothing. A single prompt, as the last of a
        validation may be, has no other one; z is 0 then.
        """
        prompts = [ids[mask].tolist() for ids, mask in zip(groups.prompt_ids, groups.prompt_mask, strict=True)]
        responses = [
            ids[mask].tolist() for ids, mask in zip(groups.completion_ids, groups.completion_mask, strict=True)
        ]
        last, number = zip(*gathered((responses[-1], len(responses))), strict=True)
        others = [last[self.global_rank - 1], *responses[:-1]]
        rooms = [self.max_length - len(prompt) for prompt in prompts]
        cut = [response[:room] for response, room in zip(others, rooms, strict=True)]
        shifted = PromptGroups.of(prompts, cut, self.policy.pad_token_id, self.device)
        ratios = _sums(self.policy.logprobs(shifted)[0], shifted)
        ratios = ratios - _sums(self.policy.reference_logprobs(shifted), shifted)
        baseline = (summed(ratios.sum()) / sum(number)).clamp(min=0)
        return baseline if sum(number) > 1 else torch.zeros_like(baseline)

    # ---- steps -------------------------------------------------------------------------------------------------------

    def evaluate_rows(self, rows: Rows) -> tuple[Tensor, Sums]:
        """(mean loss of the rows, sums to log)."""
        groups = self.groups(self.policy, rows)
        scores = self._scores(rows, groups)
        if isinstance(self.loss, PairLoss):
            losses = self.loss(*scores)
            sides = dict(zip(("chosen", "rejected"), scores, strict=True))
            counted = dict.fromkeys(sides, torch.ones_like(losses))
            sums = _side_sums(self.loss, sides, counted)
            margins = (self.loss.reward(scores[0]) - self.loss.reward(scores[1])).detach()
            sums |= {"margin": _pair(margins), "accuracy": _pair(order_accuracy(margins, torch.zeros_like(margins)))}
        else:
            assert isinstance(self.loss, KTO)
            (only,) = scores
            desirable = torch.tensor([bool(row["desirable"]) for row in rows], device=self.device)
            baseline = self._baseline(groups)
            losses = self.loss(only, desirable, baseline)
            counted = {"chosen": desirable.to(losses.dtype), "rejected": (~desirable).to(losses.dtype)}
            sums = _side_sums(self.loss, dict.fromkeys(counted, only), counted)
            sums["kl"] = (baseline, torch.ones_like(baseline))
        return losses.mean(), sums | {"loss": _pair(losses.detach())}

    def training_step(self, rows: Rows, batch_idx: int) -> Tensor:
        if isinstance(self.loss, KTO) and len(rows) * self.trainer.world_size < 2:
            raise ConfigError(
                "KTO compares every prompt with another prompt's response, but a step has one row; raise "
                "data.batch_size to 2 or more."
            )
        loss, sums = self.evaluate_rows(rows)
        self._log_means("train", sums)
        return loss

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        self._log_means("val", self.evaluate_rows(rows)[1])

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        self._log_means("test", self.evaluate_rows(rows)[1])

    def predict_step(self, rows: Rows, batch_idx: int) -> Rows:
        """Log-prob and implicit reward of every response, by the names of its columns."""
        scores = self._scores(rows, self.groups(self.policy, rows))
        results: Rows = [{"id": row.get("id")} for row in rows]
        for side, one in enumerate(scores):
            for place, (total, reward) in enumerate(
                zip(one.total.tolist(), self.loss.reward(one).tolist(), strict=True)
            ):
                number = _sides(rows[place])[side][0].removeprefix("response")
                results[place] |= {f"logprob{number}": total, f"implicit_reward{number}": reward}
        return results

    def _log_means(self, stage: str, sums: Sums) -> None:
        """Log means over all processes; a mean without terms is left out on all of them."""
        totals = summed(torch.stack([torch.stack(pair).double() for pair in sums.values()]).detach())
        for name, (total, number) in zip(sums, totals.tolist(), strict=True):
            if number:
                shown = name in ("loss", "accuracy", "margin")
                self.log(f"{stage}/{name}", total / number, prog_bar=shown, batch_size=max(1, round(number)))


def _sides(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(column of the response, column that says whether it ended), the preferred response first."""
    if "better" not in row:
        return [("response", "ended")]
    order = (0, 1) if row["better"] == 0 else (1, 0)
    return [(f"response_{side}", f"ended_{side}") for side in order]


def _key(row: dict[str, Any]) -> str:
    return fingerprint([row["prompt"], [(row[name], row.get(flag, True)) for name, flag in _sides(row)]])


def _sums(logprobs: Tensor, groups: PromptGroups) -> Tensor:
    return torch.where(groups.completion_mask, logprobs, 0.0).sum(1)


def _pair(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.sum(), values.new_tensor(len(values))


def _side_sums(loss: PreferenceLoss, sides: dict[str, ResponseScores], counted: dict[str, Tensor]) -> Sums:
    """Sums of implicit rewards, mean log-probs and lengths over the responses that count as each side."""
    sums: Sums = {}
    for side, scores in sides.items():
        number = counted[side].sum()
        quantities = {"reward": loss.reward(scores), "logprob": scores.mean, "length": scores.tokens}
        for name, values in quantities.items():
            sums[f"{name}/{side}"] = ((values.detach() * counted[side]).sum(), number)
    return sums
