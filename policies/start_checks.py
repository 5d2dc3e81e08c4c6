"""Checks of a model before its first rollout: which forward scores completions as plain, unpadded forwards do.

Packed, padded and unpadded forwards are compared on a long and a short prompt, with adapters that act.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from policies.adapters import acting_adapters, acting_weight, is_adapted, without_wrapper
from policies.logprobs import (
    LogprobsAndEntropies,
    by_length_logprobs,
    model_logits,
    packed_logprobs,
    padded_logprobs,
    token_logprobs,
)
from policies.modes import evaluation_mode
from policies.packing import PromptGroups, UnsuitableAttention
from support.errors import ConfigError
from support.processes import gathered

Scoring = Callable[..., LogprobsAndEntropies]
#: ways to score completions, the fastest first, and what they are called in messages
WAYS: dict[str, tuple[Scoring, str]] = {
    "packed": (lambda model, *options: packed_logprobs(without_wrapper(model), *options), "packed forwards"),
    "padded": (padded_logprobs, "padded forwards"),
    "by_length": (by_length_logprobs, "forwards over prompts of one length"),
}
#: completion tokens of the compared sequences
COMPLETION = 12


#: what the code of a model or of a library raises where it does not fit; all of it means that this way does not exist
FOREIGN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no reason given")[:200]


def sample_groups(prompt: list[int], pad: int, device: torch.device) -> PromptGroups:
    """Rows that show differences: two completions of a prompt, and one of its second half."""
    long = prompt if len(prompt) > 1 else prompt * 2
    completion = (long[::-1] * math.ceil(COMPLETION / len(long)))[:COMPLETION]
    short, long_completion = long[len(long) // 2 :], completion[::-1]
    prompts, completions = [long, long, short], [completion, long_completion[:-5], long_completion]
    return PromptGroups.of(prompts, completions, pad, device, owner=[0, 0, 2])  # the first two share one copy


def unpadded_logprobs(model: nn.Module, groups: PromptGroups) -> Float[Tensor, "rows time"]:
    """Log-probs by one forward per row without padding; 0 outside the completion mask.

    Raises:
        ConfigError: the model is not causal.
    """
    values = torch.zeros(groups.completion_ids.shape, device=groups.completion_ids.device)
    for row, owner in enumerate(groups.owner.tolist()):
        prompt = groups.prompt_ids[owner][groups.prompt_mask[owner]]
        completion = groups.completion_ids[row][groups.completion_mask[row]]
        ids = torch.cat([prompt, completion])[None]
        logits = model_logits(model, ids, keep=len(completion) + 1)[:, :-1]
        values[row, : len(completion)] = token_logprobs(logits, completion[None])[0]
        if row == 0:
            earlier = model_logits(model, ids[:, :-2], keep=len(completion) - 1)[:, :-1]
            before = token_logprobs(earlier, completion[None, :-2])[0]
            if not _gap(before, values[row, : len(before)]) <= _tolerance(model, ids.device):
                raise ConfigError(
                    f"{type(without_wrapper(model)).__name__} gives a token another log-prob when more tokens follow, "
                    "so it is not a causal language model and cannot be a policy. Set policy.model to a causal one."
                )
    return values


@contextmanager
def calls_of_adapted(model: nn.Module) -> Iterator[set[str]]:
    """The names of the adapted layers whose forward is called meanwhile."""
    called: set[str] = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
        if is_adapted(module)
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _check_read_around(policy: Any, groups: PromptGroups, expected: Tensor, called: set[str]) -> None:
    """Refuse adapters on layers whose weight the model reads instead of calling the layer, as some state spaces do.

    Such adapters would have no effect, or only a part of it, until they are merged. Experts that the compared tokens do
    not reach are not called either, but their weights change nothing.
    """
    idle = [
        (name, module)
        for name, module in policy.model.named_modules()
        if is_adapted(module) and name not in called and not hasattr(module, "parameter_name")
    ]
    if not idle:
        return
    weights = [module.get_base_layer().weight for _, module in idle]
    before = [weight.detach().clone() for weight in weights]
    try:
        for (_, module), weight in zip(idle, weights, strict=True):
            weight.copy_(acting_weight(module)[0])
        gap = _gap(unpadded_logprobs(policy.model, groups), expected)
    finally:
        for weight, values in zip(weights, before, strict=True):
            weight.copy_(values)
    if gap > _tolerance(policy.model, policy.device):
        names = sorted({name.rpartition(".")[2] for name, _ in idle})
        raise ConfigError(
            f"{type(policy.bare).__name__} reads the weight of {', '.join(names)} without calling the layer, so that "
            f"its adapter (policy.lora.target_modules: {policy.params.lora.target_modules!r}) has no effect until it "
            "is merged. Name the layers to adapt in policy.lora.target_modules, without these."
        )


@contextmanager
def _attention(policy: Any, kind: str) -> Iterator[None]:
    """Let the policy's model compute with this kind of attention."""
    before = policy.bare.config._attn_implementation
    if before != kind:
        policy.bare.set_attn_implementation(kind)
    try:
        yield
    finally:
        if before != kind:
            policy.bare.set_attn_implementation(before)


def _leave_packed(policy: Any) -> None:
    """Give the models the attention of their own choice."""
    for model in filter(None, (policy.bare, policy.reference)):
        model.set_attn_implementation(policy.attention)


def agree_on_scoring(policy: Any, in_shards: bool) -> None:
    """Let all processes score in the slowest of the ways that they chose, once they gather weights in every forward.

    `Policy.check` chooses without the others, because a process may sample while another has no prompts.

    Args:
        policy: a Policy that has chosen.
        in_shards: whether the next forward gathers the weights of a policy in shards; all processes call it then.
    """
    in_shards = in_shards and isinstance(policy, FSDPModule)
    if policy.scoring_agreed or not in_shards:
        return
    slowest = max(gathered(policy.scoring), key=list(WAYS).index)
    if policy.scoring == "packed" != slowest:
        _leave_packed(policy)
    policy.scoring, policy.scoring_agreed = slowest, True


def _gap(values: Tensor, expected: Tensor) -> float:
    return float((values - expected).abs().mean())


def _tolerance(model: nn.Module, device: torch.device) -> float:
    """Largest mean difference of log-probs that rounding may cause."""
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    return 1e-4 if exact else 0.1


@torch.no_grad()
def way_of_scoring(policy: Any, prompt: Int[Tensor, "time"] | list[int]) -> str:
    """The fastest of WAYS that gives the log-probs of unpadded forwards. A slower one than asked for is reported.

    Where the weights are in shards and not gathered, all processes call it, each with a prompt of its own, and find the
    same way. Where they are gathered, any process may call it alone.

    Args:
        policy: a Policy.
        prompt: token ids of a long prompt.

    Raises:
        ConfigError: none of them does, or the model is not causal.
    """
    model = policy.model
    groups = sample_groups(list(prompt), policy.pad_token_id, policy.device)
    ways = [way for way in WAYS if policy.packed or way != "packed"]
    reasons, sharded = [], isinstance(policy, FSDPModule)
    with evaluation_mode(model), acting_adapters(model):
        try:
            with _attention(policy, policy.attention):
                with calls_of_adapted(model) as called:
                    expected = unpadded_logprobs(model, groups)
                if not sharded:
                    _check_read_around(policy, groups, expected, called)
        except (torch.OutOfMemoryError, ConfigError):
            raise
        except FOREIGN as error:
            raise ConfigError(
                f"the forward of {policy.params.model} ({type(policy.bare).__name__}) fails with "
                f"{type(error).__name__}: {_line(error)}. Set policy.model to another model"
                f"{', or leave out layers in policy.lora.target_modules' if policy.params.lora else ''}."
            ) from error
        limit = _tolerance(model, policy.device)
        for way in ways:
            score, name = WAYS[way]
            try:
                gap = _gap(score(model, groups)[0][groups.completion_mask], expected[groups.completion_mask])
                problem = "" if gap <= limit else f"{name} differ by {gap:.2g} in the mean log-prob"
            except UnsuitableAttention as error:
                problem = f"{name} are not possible, because {error}"
            except torch.OutOfMemoryError:
                raise
            except FOREIGN as error:
                problem = f"{name} fail with {type(error).__name__} ({_line(error)})"
            if sharded and not policy.is_whole:  # the forwards of the next way need all processes
                problem = next(filter(None, gathered(problem)), "")
            if not problem:
                break
            reasons.append(problem)
            if way == "packed":
                _leave_packed(policy)
        else:
            raise ConfigError(
                f"{policy.params.model} cannot be trained: compared with its forward over single sequences, "
                f"{'; '.join(reasons)} (at most {limit:g} allowed). Set policy.model to another model."
            )
    if way == "by_length" and sharded:
        raise ConfigError(
            f"{policy.params.model} does not bear padding ({'; '.join(reasons)}), so its prompts are scored by length, "
            "which weights in shards do not allow. Use another strategy than FSDP2, such as ddp."
        )
    if reasons:
        warnings.warn(
            f"{type(policy.bare).__name__}: {'; '.join(reasons)}; {WAYS[way][1]} are used instead, slower.",
            stacklevel=2,
        )
    return way
