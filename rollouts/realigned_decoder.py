"""The embedded engine's decoder for policies with a bottom adapter and policy.realign: two paths, a cache for each.

See policies/realign.py for the two paths and their mixture.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.realign import mixed
from rollouts.decoder import Decoder
from rollouts.kv_cache import PromptCache


class RealignedDecoder(Decoder):
    """A Decoder whose outputs are the mixture of both paths.

    In the caches, the layers of the path through the adapter come first, then those of the path around it.

    Args:
        bare, dtype, transpose: as in Decoder.
        weight: lambda.
    """

    def __init__(self, bare: Any, dtype: torch.dtype, transpose: bool, weight: float) -> None:
        super().__init__(bare, dtype, transpose)
        count, self.weight = len(self.layers), weight
        self.layers = self.layers + self.layers[1:]
        numbered = list(enumerate(self.layers))
        self.paths = numbered[:count], numbered[count:]

    def _by_paths(self, compute: Callable[[], Tensor]) -> Tensor:
        outputs = []
        for path in self.paths:
            self.path = path
            outputs.append(compute())
        return mixed(outputs[0], outputs[1], self.weight)

    def prefill(self, ids: Tensor, lengths: Tensor, cache: PromptCache, slots: Tensor) -> None:
        def last() -> Tensor:
            Decoder.prefill(self, ids, lengths, cache, slots)
            return cache.hidden[slots]  # a copy

        cache.hidden[slots] = self._by_paths(last)

    def step(self, *arguments: Any, **options: Any) -> Tensor:
        return self._by_paths(lambda: Decoder.step(self, *arguments, **options))

    def extend(self, *arguments: Any, **options: Any) -> Tensor:
        return self._by_paths(lambda: Decoder.extend(self, *arguments, **options))
