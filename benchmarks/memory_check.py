"""Check the formulas of memory_table.py against measured rollouts, updates and optimiser steps of small models on CPU.

python benchmarks/memory_check.py            # the last table of docs/scaling.md
python benchmarks/memory_check.py --cases 6  # without the last two cases, which have SmolLM2-135M's shape
"""

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import markdown_table  # noqa: E402
from benchmarks.memory_table import MB, Setting, phases  # noqa: E402
from benchmarks.model_shapes import SHAPES, Shape  # noqa: E402
from benchmarks.random_models import (  # noqa: E402
    backward,
    completions_of_lengths,
    prompts_of_length,
    random_policy,
)
from lightning_modules.core.micro_batches import micro_batches  # noqa: E402
from policies import LoRA, PolicyParams  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that exist at a time, from the creation of a storage by an operation until it is freed.

    CPU only: the backward pass must run in this thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes:
            self.sizes[key] = size
            self.now += size
            weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result


def measured(shape: Shape, s: Setting) -> dict[str, float]:
    """Bytes of a real step on this CPU: before it, and added by rollout, update and optimiser step at their peaks."""
    policy = random_policy(
        PolicyParams(
            "",
            dtype="float32" if s.weights == 4 else "bfloat16",
            lora=LoRA(s.rank) if s.rank else None,
            gradient_checkpointing=s.checkpointing,
        ),
        with_reference=s.reference,
        **shape.config,
    )
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=s.fused)
    prompts = prompts_of_length(s.rows // s.group, s.prompt)
    forced = completions_of_lengths(policy, [s.completion] * s.rows)
    rows, sampling = [{"prompt": str(i)} for i in range(len(prompts))], SamplingParams(s.completion)
    engine, live = EmbeddedEngine(), LiveBytes()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=s.compute == 2, cache_enabled=False)
    sizes = {}
    with live, autocast:
        for tensor in policy.state_dict(keep_vars=True).values():
            live.add(tensor)
        sizes["weights + reference"] = float(live.now)
        for _ in range(2):  # the first step creates the optimiser's state and other objects that are created once
            start = live.peak = live.now
            batch = engine.generate(policy, prompts, rows, s.group, sampling, forced)
            sizes["+ rollout"], start, live.peak = float(live.peak - start), live.now, live.now
            backward(policy, batch, micro_batches(batch, slice(0, s.rows), s.tokens, None))
            sizes["+ update"], live.peak = float(live.peak - start), live.now
            optimizer.step()
            sizes["+ step"] = float(live.peak - start)
            optimizer.zero_grad()
            del batch
    sizes["optimiser"] = float(live.now) - sizes["weights + reference"]
    return sizes


COMPARED = ["weights + reference", "+ rollout", "+ update", "+ step", "optimiser"]
SMALL = Shape("4 layers of 256", 4, 256, 704, 4, 2, 64, 8192)
ON_CPU = Setting("fp32, full", compute=4, checkpointing=False, tokens=1024, rows=16, prompt=64, completion=48, cpu=True)
CASES = [
    (SMALL, ON_CPU),
    (SMALL, replace(ON_CPU, name="fp32, full, checkpointing", checkpointing=True)),
    (SMALL, replace(ON_CPU, name="fp32, LoRA", rank=16)),
    (SMALL, replace(ON_CPU, name="bf16 autocast, full", compute=2, fused=False)),
    (
        SMALL,
        replace(ON_CPU, name="bf16 weights, LoRA, checkpointing", compute=2, weights=2, rank=16, checkpointing=True),
    ),
    (
        replace(SMALL, name="8 layers of 512", layers=8, hidden=512, inner=1408, heads=8),
        replace(ON_CPU, prompt=160, rows=8),
    ),
    (SHAPES[0], replace(ON_CPU, tokens=512, rows=8)),
    (SHAPES[0], replace(ON_CPU, name="fp32, LoRA, checkpointing", tokens=512, rows=8, rank=16, checkpointing=True)),
]


def check(cases: int = len(CASES)) -> None:
    """Print formula and measurement of the first cases, in MB (10^6 bytes).

    Args:
        cases: number of cases.
    """
    rows = []
    for shape, s in CASES[:cases]:
        s = replace(s, tokens=s.rows // s.group * s.prompt + s.rows * s.completion)
        by_phase, sizes = phases(shape, s), measured(shape, s)
        computed = [by_phase[name] for name in ("rollout", "update", "step", "optimiser")]
        computed.insert(0, by_phase["weights"] + by_phase["reference"])
        cells = [
            f"{formula / MB:.1f} / {sizes[name] / MB:.1f} ({formula / sizes[name] - 1:+.0%})"
            for formula, name in zip(computed, COMPARED, strict=True)
        ]
        rows.append([shape.name, s.name, *cells])
        print(rows[-1], file=sys.stderr, flush=True)
    print(markdown_table(["model", "setting", *COMPARED], rows))


if __name__ == "__main__":
    from jsonargparse import CLI

    torch.set_num_threads(1)
    CLI(check)
