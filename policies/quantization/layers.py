"""A policy with quantised weights, activations and cache, and what this does to every layer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.quantization.cache import by_token, key_layers, key_ranges, quantized_cache, quantized_keys
from policies.quantization.frames import Frame
from policies.quantization.gptq import output_errors
from policies.quantization.grids import FLOAT_BITS, Bits, Grid
from policies.quantization.methods import QuantizationMethod
from policies.quantization.statistics import InputStatistics, layers_of, matrix


@dataclass(frozen=True)
class LayerReport:
    """One quantised layer on the calibration data.

    Fields:
        name: of the layer. weights: number of its weights.
        bits: per weight, with scales and zero points.
        error: squared error of the outputs by the weights' rounding, as a fraction of the outputs' squares.
        output_error: the same with rounded inputs, on the sample of the inputs.
        kurtosis, kurtosis_after: mean over tokens of n sum x^4 / (sum x^2)^2, before and after the change of basis; 3
            for a normal distribution, n for one outlier among zeros.
    """

    name: str
    weights: int
    bits: float
    error: float
    output_error: float
    kurtosis: float
    kurtosis_after: float


def kurtosis(values: Float[Tensor, "tokens n"]) -> float:
    """Mean over the tokens."""
    squares = values.double().square()
    return float((squares.square().mean(1) / squares.mean(1).square().clamp(min=1e-30)).mean())


@contextmanager
def quantized(
    policy: Any, bits: Bits, method: QuantizationMethod, statistics: list[InputStatistics]
) -> Iterator[list[LayerReport]]:
    """Context in which a policy computes with quantised numbers; it gives a report of every layer.

    With 16 bits everywhere nothing changes. Weights alone are changed in place, so that every engine that reads them
    can be used; quantised activations and caches need the model's own forward.

    Args:
        policy: a `Policy` with whole weights; adapters must be merged.
        statistics: of the float model, by `input_statistics`.

    Raises:
        ConfigError: the model's cache cannot be quantised.
    """
    layers = layers_of(policy)
    reports: list[LayerReport] = []
    originals: dict[nn.Module, Tensor] = {}
    with ExitStack() as stack:
        if bits.cache < FLOAT_BITS:
            _enter_cache(stack, policy, bits.cache, method, statistics, layers)
        try:
            if min(bits.weights, bits.activations) < FLOAT_BITS:
                for shared in statistics:
                    modules: list[Any] = [layers[name] for name in shared.layers]
                    weights = [matrix(module).detach().float().clone() for module in modules]  # set in place below
                    frame = method.frame(shared, weights, bits)
                    for name, module, weight in zip(shared.layers, modules, weights, strict=True):
                        new = weight
                        if bits.weights < FLOAT_BITS:
                            original: Any = module.weight
                            originals[module] = original.detach().clone()
                            new = method.rounded(weight, shared, frame, bits.weights)
                            _set(matrix(module), new)
                        grid = None
                        if bits.activations < FLOAT_BITS:
                            grid = method.activation_grid(bits.activations)
                            handle = module.register_forward_pre_hook(_rounding_hook(grid, frame))
                            stack.callback(handle.remove)
                        reports.append(_report(name, weight, new, shared, frame, method, bits, grid))
            yield reports
        finally:
            for module, original in originals.items():
                _set(module.weight, original)


@torch.no_grad()
def _set(weight: Any, values: Tensor) -> None:
    weight.copy_(values)


def _rounding_hook(grid: Grid, frame: Frame) -> Any:
    def call(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs: Tensor = arguments[0]
        return (rounded_inputs(inputs, grid, frame), *arguments[1:])

    return call


def rounded_inputs(inputs: Tensor, grid: Grid, frame: Frame) -> Tensor:
    """The inputs, rounded in the layer's basis with a scale per token, and moved back; in float32 in any precision."""
    with torch.autocast(inputs.device.type, enabled=False):
        return frame.inputs_back(grid.quantized(frame.inputs(inputs.float()))).to(inputs.dtype)


def _enter_cache(
    stack: ExitStack,
    policy: Any,
    bits: int,
    method: QuantizationMethod,
    statistics: list[InputStatistics],
    layers: dict[str, nn.Module],
) -> None:
    grid = method.cache_grid(bits)
    rounding = by_token(grid, method.rotation)
    if method.keys == "token":
        stack.enter_context(quantized_cache(policy, rounding, rounding))
        return
    by_channel = Grid(bits, None, False, method.cache_clip)
    samples = {name: shared.sample for shared in statistics for name in shared.layers}
    named = key_layers({name: layers[name] for name in samples})
    ranges = {module: key_ranges(module, samples[name], by_channel) for name, module in named.items()}
    stack.enter_context(quantized_keys(ranges, by_channel))
    stack.enter_context(quantized_cache(policy, None, rounding))


def _report(
    name: str,
    weight: Tensor,
    new: Tensor,
    shared: InputStatistics,
    frame: Frame,
    method: QuantizationMethod,
    bits: Bits,
    grid: Grid | None,
) -> LayerReport:
    outputs = shared.sample @ weight.T
    inputs = shared.sample if grid is None else rounded_inputs(shared.sample, grid, frame)
    total = output_errors(weight, shared.hessian).sum().clamp(min=1e-30)
    stored = float(bits.weights)
    if bits.weights < FLOAT_BITS:
        stored = method.weight_grid(bits.weights).stored_bits(*weight.shape)
    return LayerReport(
        name,
        weight.numel(),
        stored,
        float(output_errors(new - weight, shared.hessian).sum() / total),
        float((inputs @ new.T - outputs).square().sum() / outputs.square().sum().clamp(min=1e-30)),
        kurtosis(shared.sample),
        kurtosis(frame.inputs(shared.sample)),
    )


def whole_model_bits(policy: Any, reports: list[LayerReport]) -> float:
    """Bits per weight of the whole model; embeddings, output layer and norms have 16."""
    total: int = sum(weight.numel() for name, weight in policy.bare.named_parameters() if "lora_" not in name)
    saved = sum(report.weights * (FLOAT_BITS - report.bits) for report in reports)
    return float(FLOAT_BITS - saved / total)
