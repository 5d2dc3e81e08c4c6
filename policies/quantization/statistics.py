"""Statistics of the inputs of every layer: second moments, mean and largest absolute values, a sample."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from policies.compute import computing
from policies.modes import evaluation_mode
from support.errors import ConfigError

#: tokens of the calibration data whose inputs are kept
SAMPLE = 256
#: parts of a layer's name that choose experts, and stay in float
ROUTERS = ("router", "gate")


@dataclass
class InputStatistics:
    """Of the inputs of one layer, or of layers with the same inputs, over all calibration tokens.

    Fields:
        hessian: (inputs, inputs), (2/n) sum x x^T.
        abs_mean, abs_max: (inputs,).
        sample: (tokens, inputs), inputs of some tokens.
        layers: names of the layers.
        tokens: number of tokens.
    """

    hessian: Float[Tensor, "inputs inputs"]
    abs_mean: Float[Tensor, "inputs"]
    abs_max: Float[Tensor, "inputs"]
    layers: list[str]
    sample: Float[Tensor, "tokens inputs"] = field(default_factory=lambda: torch.zeros(0, 0, device="cpu"))
    tokens: int = 0
    kept: list[Tensor] = field(default_factory=list, repr=False)

    def add(self, inputs: Float[Tensor, "tokens inputs"], keep: int) -> None:
        """Add tokens, and keep up to `keep` of them."""
        self.hessian += 2 * inputs.T @ inputs
        self.abs_mean += inputs.abs().sum(0)
        self.abs_max = torch.maximum(self.abs_max, inputs.abs().amax(0))
        # At random: a stride over sequences of one length would take the same positions of all of them.
        generator = torch.Generator().manual_seed(self.tokens)
        chosen = torch.randperm(len(inputs), generator=generator, device="cpu")[:keep]
        self.kept.append(inputs[chosen.to(inputs.device)])
        self.tokens += len(inputs)

    def finish(self) -> None:
        """Turn sums into means."""
        self.hessian /= self.tokens
        self.abs_mean /= self.tokens
        self.sample, self.kept = torch.cat(self.kept), []


def layers_of(policy: Any) -> dict[str, nn.Module]:
    """The layers whose matrices can be quantised, by name: all linear ones but the output layer and routers."""
    head = policy.bare.get_output_embeddings()
    return {
        name: module
        for name, module in policy.bare.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and "lora_" not in name
        and name.removesuffix(".base_layer").rpartition(".")[2] not in ROUTERS
    }


def matrix(module: Any) -> Float[Tensor, "outputs inputs"]:
    """The weight of a layer, a view; transformers' Conv1D stores it the other way round."""
    weight: Tensor = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def of_equal_length(sequences: Sequence[Sequence[int]], tokens: int = 4096) -> Iterator[list[Sequence[int]]]:
    """Parts of the sequences that need no padding, which would count as inputs; at most `tokens` tokens together."""
    by_length: defaultdict[int, list[Sequence[int]]] = defaultdict(list)
    for sequence in sequences:
        by_length[len(sequence)].append(sequence)
    for length, rows in sorted(by_length.items()):
        step = max(1, tokens // length)
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


@torch.no_grad()
def input_statistics(policy: Any, sequences: Sequence[Sequence[int]]) -> list[InputStatistics]:
    """Run the float model on sequences of token ids, without padding.

    Layers that are called with the same tensor, such as the projections to queries, keys and values, share statistics.
    Layers that are never called have none.

    Raises:
        ConfigError: no sequences, or a model without linear layers.
    """
    sequences = [sequence for sequence in sequences if len(sequence)]
    if not sequences:
        raise ConfigError(
            "there are no calibration sequences; raise model.calibration.size or name another model.calibration.source."
        )
    by_layer: dict[str, InputStatistics] = {}
    leaders: dict[int, tuple[str, Tensor]] = {}  # inputs of the current forward, kept so that no id is used again
    keep = max(1, -(-SAMPLE // len(sequences)))

    def hook(name: str) -> Any:
        def call(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs: Tensor = arguments[0]
            leader = leaders.setdefault(id(inputs), (name, inputs))[0]
            statistics = by_layer.get(name)
            if statistics is None:
                if leader != name and leader in by_layer:
                    by_layer[name] = by_layer[leader]
                    by_layer[leader].layers.append(name)
                    return
                size = inputs.shape[-1]
                zeros = torch.zeros(size, device=inputs.device)
                square = torch.zeros(size, size, device=inputs.device)
                statistics = by_layer[name] = InputStatistics(square, zeros, zeros.clone(), [name])
            if statistics.layers[0] == name:
                with torch.autocast(inputs.device.type, enabled=False):
                    statistics.add(inputs.reshape(-1, inputs.shape[-1]).float(), keep * inputs.shape[0])

        return call

    layers = layers_of(policy)
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        with evaluation_mode(policy.model), computing(policy):
            for rows in of_equal_length(sequences):
                leaders.clear()
                policy.bare(input_ids=torch.tensor(rows, device=policy.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    results = list({id(statistics): statistics for statistics in by_layer.values()}.values())
    if not results:
        raise ConfigError(f"{type(policy.bare).__name__} has no linear layers that could be quantised.")
    for statistics in results:
        statistics.finish()
    return results
