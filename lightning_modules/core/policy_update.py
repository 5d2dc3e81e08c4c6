"""The last arrow, from advantages to weights: passes over the rollout's tokens, and the optimiser steps."""

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_modules.core.micro_batches import MicroBatch, micro_batches, update_slices
from objectives.kl import kl_estimate
from rollouts import RolloutBatch
from support.errors import ConfigError

if TYPE_CHECKING:
    from lightning_modules.core.on_policy import OnPolicyModule


def policy_update(module: "OnPolicyModule", batch: RolloutBatch) -> dict[str, float]:
    """The optimiser steps of one rollout with advantages. Returns means over the tokens of what the loss reports."""
    passes = _Passes(module, batch)
    plan, optimizer = module.batch, module.optimizers()
    norms: list[float] = []
    tokens = parts = 0
    for part in update_slices(batch, plan.updates_per_rollout) * plan.epochs:
        _accumulate(module, passes, part)
        tokens, parts = tokens + int(passes.mask[part].sum()), parts + 1
        if drifted(module, passes.drift, passes.mask[part]):
            optimizer.zero_grad()  # type: ignore[union-attr]
            break
        if (extra := module.auxiliary_loss()) is not None:
            module.manual_backward(extra)
        norms.append(_step(module, optimizer))
    skipped = sum(not math.isfinite(norm) for norm in norms)
    norms = [norm for norm in norms if math.isfinite(norm)]
    if plan.lr_per == "rollout":
        _step_scheduler(module)
    loss = passes.sums.pop("loss")
    totals = module.summed(
        torch.stack([loss.double(), torch.tensor(float(tokens)).to(loss), *passes.sums.values()]).double()
    )
    means = {name: float(total / totals[1].clamp(min=1)) for name, total in zip(passes.sums, totals[2:], strict=True)}
    if plan.kl_stop is not None:
        means["updates"] = float(len(norms))
    means["skipped_updates"] = float(skipped)
    return means | {"loss": float(totals[0]) / parts, "grad_norm": sum(norms) / max(len(norms), 1)}


def _accumulate(module: "OnPolicyModule", passes: "_Passes", part: slice) -> None:
    """The gradient of one optimiser step. Passes that do not fit into memory are halved, once a run."""
    weights, sums = module.row_weights(passes.mask[part]), dict(passes.sums)
    passes.drift.zero_()
    micros = micro_batches(passes.batch, part, module.update_token_budget, module.trainer)
    try:
        for micro in micros:
            # The ranks' gradients are averaged, the row weights already count all ranks' rows.
            module.manual_backward(passes.loss(micro, weights[micro.rows - part.start]) * module.trainer.world_size)
        return
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        largest = max(int(passes.batch.lengths[micro.rows].sum()) for micro in micros)
        if module.update_budget_halved or module.trainer.world_size > 1:
            raise ConfigError(
                f"a pass over {largest} completion tokens does not fit into memory ({str(error).splitlines()[0]}); set batch.update_token_budget to "
                f"{largest // 2} or less, or policy.gradient_checkpointing: true."
            ) from error
    # Outside the handler, whose traceback would keep the failed pass in memory; gradients of the part so far are thrown away.
    module.optimizers().zero_grad()  # type: ignore[union-attr]
    module.update_token_budget, module.update_budget_halved, passes.sums = largest // 2, True, sums
    warnings.warn(
        f"a pass over {largest} completion tokens did not fit into memory; from here on passes have {largest // 2} tokens. Set batch.update_token_budget.",
        stacklevel=2,
    )
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
    _accumulate(module, passes, part)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on a GPU or a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class _Passes:
    """What all passes over one rollout share, and what they add up."""

    def __init__(self, module: "OnPolicyModule", batch: RolloutBatch) -> None:
        assert batch.advantages is not None
        self.module, self.batch, self.mask = module, batch, module.loss_mask(batch)
        self.advantages = (
            batch.advantages
            if batch.advantages.dim() == 2
            else batch.advantages[:, None].expand(batch.completion_ids.shape)
        )
        self.reference = module.reference_logprobs(batch) if module.kl.coefficient else None
        # With one update the policy is still the one that sampled, and its own log-probs give a ratio of exactly one.
        self.behaviour = module.sampled_logprobs(batch) if module.batch.updates > 1 else None
        self.correct = (
            module.importance_cap is not None and module.plain_sampling and not module.engine.matches(module.policy)
        )
        self.sums: dict[str, Tensor] = {}  # over the masked tokens
        self.drift = torch.zeros((), device=module.device)

    def loss(self, micro: MicroBatch, weights: Float[Tensor, "some"]) -> Float[Tensor, ""]:
        """The weighted loss of one pass, with a gradient."""
        module, batch, rows, width = self.module, self.batch, micro.rows, micro.width
        mask = self.mask[rows, :width] & micro.counted[:, None]
        bonus = module.shaping.entropy_bonus
        logprobs, entropy = module.policy.logprobs(
            batch.prompt_groups(rows), module.temperature, entropy_gradient=bonus > 0
        )
        old = module.behaviour(
            batch, rows, logprobs.detach() if self.behaviour is None else self.behaviour[rows, :width]
        )
        given = None if self.reference is None else self.reference[rows, :width]
        loss, found = module.token_loss(logprobs, old, given, self.advantages[rows, :width], mask)
        if self.correct:
            importance = (old - batch.behaviour_logprobs[rows, :width]).exp().clamp(max=module.importance_cap)
            loss, found["importance"] = loss * torch.where(mask, importance, 0.0), (importance * mask).sum()
        if bonus:
            loss = loss - bonus * entropy
        found["entropy"] = (entropy.detach() * mask).sum()
        found["behaviour_gap"] = ((logprobs.detach() - batch.behaviour_logprobs[rows, :width]).abs() * mask).sum()
        found["loss"] = (torch.where(mask, loss, 0.0) * weights[:, None]).sum()
        if module.batch.kl_stop is not None:
            self.drift += torch.where(mask, kl_estimate(old, logprobs.detach(), "k3"), 0.0).sum()
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=module.device)) + value.detach()
        return found["loss"]


def drifted(module: "OnPolicyModule", drift: Tensor, mask: Tensor) -> bool:
    """Whether the policy is further from the one that sampled than `kl_stop` allows, judged over all processes so that all of them stop."""
    if module.batch.kl_stop is None:
        return False
    total = module.summed(torch.stack([drift, mask.sum().float()]))
    return float(total[0] / total[1].clamp(min=1)) > module.batch.kl_stop


@torch.no_grad()
def all_logprobs(module: "OnPolicyModule", batch: RolloutBatch, reference: bool) -> Float[Tensor, "rows time"]:
    """Log-probs of every completion token under the policy or the reference; 0 outside the action mask."""
    values = torch.zeros(batch.completion_ids.shape, device=module.device)
    for micro in micro_batches(batch, slice(0, len(values)), module.update_token_budget, None):
        groups = batch.prompt_groups(micro.rows)
        values[micro.rows, : micro.width] = (
            module.policy.reference_logprobs(groups, module.temperature)
            if reference
            else module.policy.logprobs(groups, module.temperature)[0]
        )
    return values.masked_fill(~batch.action_mask, 0.0)


def total_norm(gradients: list[Tensor]) -> float:
    """The norm of all gradients together, of those in shards over all processes."""
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _step(module: "OnPolicyModule", optimizer: Any) -> float:
    """One optimiser step, left out if the gradient is not finite. Returns the gradient's norm before it was clipped."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = total_norm([p.grad for p in parameters])
    if math.isfinite(norm):  # the same on all processes, whose gradients have been averaged
        if module.max_grad_norm is not None:
            module.clip_gradients(optimizer, module.max_grad_norm, "norm")
        optimizer.step()
    optimizer.zero_grad()
    if module.batch.lr_per == "update":
        _step_scheduler(module)
    return norm


def _step_scheduler(module: "OnPolicyModule") -> None:
    scheduler = module.lr_schedulers()
    if scheduler is not None:
        scheduler.step()  # type: ignore[union-attr]
