"""The precision of a policy's matrix products: as set, or the faster one by a measurement.

In bfloat16 the float32 weights are cast once per rollout and once per update, and the products of the layers are
rounded; sums over the layers, norms, softmax and log-probs stay in float32, as do gradients and optimiser.
Processors with AMX or avx512_bf16 instructions multiply bfloat16 several times as fast as float32, others slower.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from policies.params import PolicyParams
from support.processes import gathered

Precision = Literal["float32", "bfloat16"]
Generate = TypeVar("Generate", bound=Callable[..., Any])
#: rows of the measured products: a step of decoding, and a part of an update
ROWS = (32, 256)
#: largest measured width, which bounds the time of the measurement
WIDEST = 2048
#: factor from which bfloat16 is chosen; below it, what is around the products takes the gain
WORTH = 1.5


@dataclass(frozen=True)
class Probe:
    """Times of a layer's products: forward on a few rows, forward and both backward products on many.

    Fields:
        float32, bfloat16: CPU seconds, the smallest of several alternating runs; other processes change them less than
            the time of day. Casts of inputs and outputs count, casts of the weights do not.
    """

    float32: float
    bfloat16: float

    @property
    def choice(self) -> Precision:
        return "bfloat16" if self.float32 >= WORTH * self.bfloat16 else "float32"

    def __str__(self) -> str:
        return (
            f"a layer's matrix products take {1e3 * self.float32:.3g} ms in float32 and {1e3 * self.bfloat16:.3g} ms "
            f"in bfloat16 (chosen from {WORTH:g} times as fast)"
        )


def probe(config: Any, runs: int = 5) -> Probe:
    """Measure the products of one layer of a model.

    Args:
        config: transformers' configuration of the model.
        runs: number of runs in each precision.
    """
    text = config.get_text_config(decoder=True)
    width = min(WIDEST, int(getattr(text, "hidden_size", 512)))
    inner = min(WIDEST, int(getattr(text, "intermediate_size", None) or 4 * width))
    weight = torch.linspace(-1, 1, inner * width).view(inner, width)
    inputs, slopes = ([torch.linspace(-1, 1, rows * size).view(rows, size) for rows in ROWS] for size in (width, inner))

    def products(weight: Tensor) -> None:
        dtype = weight.dtype
        for number, (states, slope) in enumerate(zip(inputs, slopes, strict=True)):
            states = states.to(dtype)
            linear(states, weight).float()
            if number:
                slope = slope.to(dtype)
                (slope @ weight).float(), (slope.T @ states).float()

    half, times = weight.bfloat16(), (list[float](), list[float]())
    for _ in range(runs + 1):
        for seconds, matrix in zip(times, (weight, half), strict=True):
            start = time.process_time()
            products(matrix)
            seconds.append(time.process_time() - start)
    return Probe(*(min(seconds[1:]) for seconds in times))


def chosen_precision(params: PolicyParams, config: Any) -> tuple[Precision, Probe | None]:
    """The precision that a policy computes in, and the measurement for `auto`; all processes choose the same.

    Where there is a GPU nothing is measured, and auto is float32: there, trainer.precision decides.

    Args:
        config: of the model.
    """
    if params.compute != "auto":
        return params.compute, None
    if torch.cuda.is_available():
        return "float32", None
    measured = probe(config)
    is_faster = all(choice == "bfloat16" for choice in gathered(measured.choice))
    return ("bfloat16" if is_faster else "float32"), measured


def computing(policy: Any) -> AbstractContextManager[Any]:
    """Context in which a Policy computes in its precision; nothing within another one, or within Lightning's.

    The outermost context casts each trained weight once. Code that changes weights within it must call
    `torch.clear_autocast_cache()`.
    """
    kind = policy.device.type
    if policy.compute == "float32" or torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, torch.bfloat16)


def in_its_precision(generate: Generate) -> Generate:
    """Let an engine's method that takes the policy first run in the policy's precision."""

    @wraps(generate)
    def call(engine: Any, policy: Any, *arguments: Any, **options: Any) -> Any:
        with computing(policy):
            return generate(engine, policy, *arguments, **options)

    return cast(Generate, call)
