"""The optimiser's steps of an update: gradients, their norms by part, and the learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

#: `part` of the optimiser's parameter groups that belong to a critic
CRITIC = "critic"


@dataclass
class Steps:
    """Computation and application of gradients.

    Fields:
        optimizer: Lightning's wrapper or a plain optimiser.
        scheduler: learning-rate scheduler, stepped as `BatchPlan.lr_per` says; None for a constant learning rate.
        backward: adds the gradient of a loss.
        max_grad_norm: maximum norm of the gradients, which are scaled down to it; None for no clipping. A critic's
            gradients are scaled by their own norm.
        policy_frozen: discard the policy's gradients.
    """

    optimizer: Any
    scheduler: Any
    backward: Callable[[Tensor], None]
    max_grad_norm: float | None
    policy_frozen: bool = False
    #: number of calls of `step_scheduler`
    scheduler_steps: int = 0

    def step(self) -> dict[str, float]:
        """Take one optimiser step; skip it if a gradient is not finite. Returns the norms before clipping, by metric.

        A frozen policy has no norm, and its weights and moments stay as they are.
        """
        parts: dict[str, list[Any]] = {}
        for group in self.optimizer.param_groups:
            is_critic = group.get("part") == CRITIC
            if self.policy_frozen and not is_critic:
                for parameter in group["params"]:
                    parameter.grad = None
                continue
            name = "critic_grad_norm" if is_critic else "grad_norm"
            parts.setdefault(name, []).extend(p for p in group["params"] if p.grad is not None)
        norms = {name: total_norm([p.grad for p in parameters]) for name, parameters in parts.items()}
        if all(map(math.isfinite, norms.values())):  # on all processes, because gradients have been averaged
            for name, parameters in parts.items():
                if self.max_grad_norm is not None and parameters:
                    # Lightning's own clipping refuses fused optimisers under mixed precision, which need no unscaling.
                    whole = torch.tensor(norms[name], device=parameters[0].device)
                    torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, whole)
            self.optimizer.step()
            torch.clear_autocast_cache()  # the casts of the weights before the step
        self.optimizer.zero_grad()
        return norms

    def step_scheduler(self) -> None:
        """Advance the learning rate by one step."""
        self.scheduler_steps += 1
        if self.scheduler is not None:
            self.scheduler.step()


def total_norm(gradients: list[Tensor]) -> float:
    """The norm of all gradients together; sharded ones are summed over all processes."""
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
